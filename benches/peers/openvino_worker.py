"""OpenVINO's side: the graph converted once, with its shapes fixed, and compiled for latency.

The graph is kept beside the model, as `openvino/WORK-BATCHxSIZE.xml`.
"""

import os
import subprocess
import sys

import openvino

import worker

CONVERTING = "CONVERT_FOR_OPENVINO"


def convert(args, path):
    """In a process of its own, whose memory does not count."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[args.work]
            self.model = kind.from_pretrained(args.model / args.work).eval()

        def forward(self, *given):
            forward = self.model if args.work == "unet" else self.model.decode
            return forward(*given, return_dict=False)[0]

    given = tuple(torch.from_numpy(array) for array in worker.inputs(args))
    with torch.inference_mode():
        graph = openvino.convert_model(
            Part(), example_input=given, input=[list(tensor.shape) for tensor in given]
        )
    unfinished = path.with_name(f"unfinished-{path.name}")
    openvino.save_model(graph, unfinished, compress_to_fp16=False)
    unfinished.with_suffix(".bin").rename(path.with_suffix(".bin"))
    unfinished.rename(path)


def main():
    args = worker.arguments(__doc__)
    path = args.model / f"openvino/{args.work}-{args.batch}x{args.size}.xml"
    if CONVERTING in os.environ:
        return convert(args, path)
    core = openvino.Core()
    if args.dtype.upper() not in ["F32", *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]:
        sys.exit(f"OpenVINO has no {args.dtype} on this processor")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, *sys.argv], env=os.environ | {CONVERTING: "1"}, check=True, stdout=sys.stderr
        )
    given = worker.inputs(args)

    def load():
        settings = {
            "INFERENCE_PRECISION_HINT": args.dtype,
            "INFERENCE_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
            "PERFORMANCE_HINT": "LATENCY",
        }
        return core.compile_model(path, "CPU", settings).create_infer_request()

    def evaluate(request):
        request.infer(list(given), share_inputs=True)
        return request.get_output_tensor().data

    worker.serve(load, evaluate)


if __name__ == "__main__":
    main()
