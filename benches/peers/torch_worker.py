"""PyTorch's side: eager, channels-last, fused attention, inference mode."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

import worker


def main():
    args = worker.arguments(__doc__)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[args.work]

    def load():
        model = kind.from_pretrained(args.model / args.work, torch_dtype=dtype)
        return model.eval().to(memory_format=torch.channels_last)

    given, *rest = (torch.from_numpy(array).to(dtype) for array in worker.inputs(args))
    given = given.contiguous(memory_format=torch.channels_last)

    def evaluate(model):
        forward = model if args.work == "unet" else model.decode
        return forward(given, *rest, return_dict=False)[0].float()

    with torch.inference_mode():
        worker.serve(load, evaluate)


if __name__ == "__main__":
    main()
