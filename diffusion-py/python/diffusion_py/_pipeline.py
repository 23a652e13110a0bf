"""The pipeline that users call, over the native one."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

from . import _arguments, _arrays, _request
from ._arguments import Pair, Path
from ._controls import Control
from ._files import Provenance
from ._native import CancelToken, NativePipeline, NativeRequest, Progress
from ._networks import DeepShrink, Seamless, VaeTiling
from ._output import LoraReport, Output
from ._start import Hires

if TYPE_CHECKING:
    import numpy

__all__ = ["Pipeline"]

Loras: TypeAlias = "Path | Iterable[Path | tuple[Path, _arguments.Strength]]"

OutputType = Literal["pil", "np", "latent"]

PromptSyntax = Literal["plain", "a1111", "compel"]


class Pipeline:
    """A Stable Diffusion model, loaded. Made by :meth:`from_pretrained`.

    Threads may share one and call it at the same time; the GIL is released while it loads, runs and
    changes. A run keeps the LoRAs, words and IP-Adapters that it began with: methods that change them
    do not wait for it, and count for the runs that begin after them. A ``callback`` may call
    them, too.
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativePipeline) -> None:
        self._native = native

    @classmethod
    def from_pretrained(
        cls,
        path: Path,
        *,
        dtype: object = None,
        variant: str | None = None,
        revision: str | None = None,
        device: object = "cpu",
        num_threads: SupportsIndex | None = None,
        quantize: str | None = None,
        vae: Path | Iterable[Path] | None = None,
        loras: Loras | None = None,
        embeddings: Path | Iterable[Path | tuple[Path, str]] | None = None,
    ) -> Pipeline:
        """Loads a model: a folder, a file, or an id of the Hugging Face Hub.

        Args:
            path: A folder in the diffusers layout (with ``model_index.json``); one file that holds
                the whole model (``.safetensors``, ``.ckpt``, ``.gguf``); or, where no such path is,
                an id of the hub (``"owner/name"`` or ``"owner/name/file.safetensors"``). What is
                needed of it is downloaded once, into the cache of ``huggingface_hub``, whose
                environment variables count: ``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and
                others. Ctrl-C stops a download, and the next call goes on with it.
            dtype: The number format that weights are held in: ``"float32"``, ``"float16"``,
                ``"bfloat16"``, or an object that prints as one, such as ``torch.float16``. On the
                CPU activations are float32 in all three, and so are products but those with
                bfloat16 weights, which are of 16 bits, faster and coarser. Default: float32 on the
                CPU, float16 elsewhere.
            variant: Prefers weight files of this variant, such as ``"fp16"``.
            revision: The branch, tag or commit of a model on the hub. Default: ``"main"``.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"metal"``, or an object that prints as
                one, such as ``torch.device("cuda")``.
            num_threads: How many threads the layers work on, on the CPU, from 1 to 1024. Pictures are
                the same on any number. Default: those of the whole process, one for each processor.
            quantize: ``"int8"`` holds the layers of the UNet and the text encoders in eight bits;
                ``dtype`` is what all else is held in. Default: off.
            vae: Another autoencoder in place of the model's: its folder or file, a model that has
                one, or an id (``"owner/name/file.safetensors"``); or the list of its files, as
                TAESD's encoder and decoder.
            loras: A LoRA's file, folder or id; or a list of them, each alone or with its strength as
                ``(path, scale)``. See :meth:`set_loras`.
            embeddings: The file of a learned word of textual inversion; or a list of them, each alone
                or with the word that prompts shall use as ``(path, token)``. See
                :meth:`add_embedding`.

        Raises:
            NotFoundError: The path or a part of the model is missing, here or on the hub.
            FormatError: A file is damaged.
            WeightsError: Tensors do not fit their configuration.
            UnsupportedError: This version does not know the model, or this build or machine
                lacks the device.
            InvalidArgumentError: ``dtype``, ``device`` or ``quantize`` is not one of the names above, or a LoRA or
                word is made for another family of models.
            IoError: The hub cannot be reached or refuses.
        """
        native = NativePipeline.load(
            path,
            dtype=None if dtype is None else str(dtype),
            variant=variant,
            revision=revision,
            device=str(device),
            num_threads=_arguments.optional_whole("num_threads", num_threads),
            quantize=quantize,
            vae=_arguments.paths("vae", vae),
            loras=_arguments.loras(loras),
            embeddings=_arguments.with_paths("embeddings", embeddings, None),
        )
        return cls(native)

    @property
    def default_size(self) -> tuple[int, int]:
        """``(width, height)`` of pictures of calls that name no size, in pixels."""
        return self._native.default_size

    @property
    def notes(self) -> list[str]:
        """What the model's file does not say and was assumed, such as what the model predicts, and
        what of it is not used. Empty for folders in the diffusers layout.
        """
        return self._native.notes

    def set_loras(self, loras: Loras, *, merged: bool = True) -> None:
        """Puts LoRAs, or their relatives, in place of those that were there before.

        Args:
            loras: As in :meth:`from_pretrained`. Several add up. A strength is a number, or a
                mapping of numbers: ``"unet"`` and ``"text_encoder"``, each 1 where it is not
                there, and factors for blocks of the UNet by diffusers' names or the original ones,
                such as ``{"unet": 0.8, "text_encoder": 0, "up_blocks.1": 0.5}``. Words that a file brings with it
                come and go with it.
            merged: ``True`` adds them to the weights: runs are as fast as without, and changed weights
                take memory beside the model's own. ``False`` computes them beside the weights in
                each step, which takes less memory and more time.

        Raises:
            NotFoundError: There is no such file.
            FormatError: A file is damaged or no LoRA.
            InvalidArgumentError: One is made for another family of models, or a strength is not
                finite. The LoRAs of before then stay.
        """
        self._native.set_loras(_arguments.loras(loras), merged)

    def clear_loras(self) -> None:
        """Takes all LoRAs out. The weights are then the model's own, bit for bit."""
        self._native.clear_loras()

    def drop_text_encoders(self) -> None:
        """Gives the memory of the text encoders back. Prompts that a run had before are known on, the
        last eight of them, until LoRAs or words change; others then raise ``UnsupportedError``.
        """
        self._native.drop_text_encoders()

    @property
    def loras(self) -> list[LoraReport]:
        """What became of the LoRAs that are in place."""
        return [LoraReport(*report) for report in self._native.loras()]

    def add_embedding(self, path: Path, token: str | None = None) -> str:
        """Adds a learned word of textual inversion, which prompts then use by its name.

        Args:
            path: Its file.
            token: The word. Default: the one that the file states, or else the file's name without
                its ending. Files of the user interfaces may state a name that is not the file's;
                prompts may then use either.

        Returns:
            The word.

        Raises:
            NotFoundError: There is no such file.
            FormatError: The file is damaged or has no vectors of a word.
            InvalidArgumentError: The word is made for another family of models, or the model knows
                it.
        """
        return self._native.add_embedding(path, token)

    def add_ip_adapter(self, path: Path, image_encoder: Path | None = None) -> None:
        """Adds an IP-Adapter, for which ``ip_adapter_image`` of :meth:`generate` then has pictures.

        Args:
            path: Its original file, safetensors or ``.bin``.
            image_encoder: The folder or file of CLIP's vision model, by which all adapters see.
                Default: the one that the pipeline has, or that lies beside the file as published
                (``image_encoder`` or ``../models/image_encoder``).

        Raises:
            NotFoundError: There is no such file.
            FormatError: A file is damaged.
            WeightsError: Tensors do not fit the model.
            UnsupportedError: It sees by a network for faces (FaceID).
            InvalidArgumentError: It is made for another model or image encoder.
        """
        self._native.add_ip_adapter(path, image_encoder)

    def clear_ip_adapters(self) -> None:
        """Takes all IP-Adapters out; the image encoder stays."""
        self._native.clear_ip_adapters()

    def generate(
        self,
        prompt: str = "",
        negative_prompt: str | None = None,
        *,
        prompt_2: str | None = None,
        negative_prompt_2: str | None = None,
        prompt_syntax: PromptSyntax = "a1111",
        clip_skip: SupportsIndex | None = None,
        prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
        num_inference_steps: SupportsIndex = 50,
        guidance_scale: SupportsFloat | Iterable[SupportsFloat] = 7.5,
        guidance_rescale: SupportsFloat = 0.0,
        guidance_interval: tuple[SupportsFloat, SupportsFloat] = (0.0, 1.0),
        image_guidance_scale: SupportsFloat = 1.5,
        cfg_zero_star: SupportsIndex | None = None,
        pag_scale: SupportsFloat = 0.0,
        pag_adaptive_scale: SupportsFloat = 0.0,
        pag_applied_layers: str | Iterable[str] = (),
        image: Any = None,
        strength: SupportsFloat | None = None,
        resize_mode: Literal["stretch", "crop", "fill"] = "stretch",
        mask_image: Any = None,
        mask_blur: SupportsFloat | None = None,
        padding_mask_crop: SupportsIndex | None = None,
        paste_back: bool = True,
        masked_content: Literal["original", "fill", "noise", "nothing"] | None = None,
        margins: Iterable[SupportsIndex] | None = None,
        hires: Hires | None = None,
        deep_shrink: DeepShrink | None = None,
        deep_cache: SupportsIndex = 1,
        tgate: SupportsIndex | None = None,
        token_merging: SupportsFloat = 0.0,
        seamless: Seamless = False,
        vae_tiling: VaeTiling | None = None,
        vae_slicing: bool = False,
        width: SupportsIndex | None = None,
        height: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        num_images: SupportsIndex = 1,
        batch_size: SupportsIndex = 1,
        eta: SupportsFloat | None = None,
        scheduler: str | Mapping[str, Any] | None = None,
        latents: Any = None,
        noise: Any = None,
        variation: tuple[SupportsIndex, SupportsFloat] | None = None,
        denoising_start: SupportsFloat | None = None,
        denoising_end: SupportsFloat | None = None,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        negative_original_size: Pair | None = None,
        negative_crops_coords_top_left: Pair | None = None,
        negative_target_size: Pair | None = None,
        aesthetic_score: SupportsFloat = 6.0,
        negative_aesthetic_score: SupportsFloat = 2.5,
        control: Control | Iterable[Control] = (),
        ip_adapter_image: Any = None,
        ip_adapter_scale: SupportsFloat | Iterable[SupportsFloat] = 1.0,
        output_type: OutputType = "pil",
        callback: Callable[[Progress], object] | None = None,
        cancel_token: CancelToken | None = None,
        keep_cancelled: bool = False,
    ) -> Output:
        """Makes pictures from a prompt.

        Args:
            prompt: What the pictures shall show.
            negative_prompt: What they shall not show; it counts where guidance is on. None means nothing, which
                SDXL is told by zeros and the other models by the empty text.
            prompt_2: What SDXL's second text encoder reads. Default: ``prompt``.
            negative_prompt_2: The same for ``negative_prompt``.
            prompt_syntax: How prompts are read. ``"a1111"``: ``(word:1.3)``, ``[word]``, ``BREAK``,
                ``[from:to:0.5]``, ``[a|b]``, ``a AND b``; ``"compel"``: ``word++``, ``(words)0.8``,
                ``("a", "b").and()``; both take prompts of any length, and read an ordinary one as it
                stands. ``"plain"``: all characters are text, as in diffusers; tokens above the
                model's limit are left out and told in ``Output.warnings``.
            clip_skip: Which layer of the text encoder is read, counted from the last, which is 1, as
                A1111 counts. diffusers' ``clip_skip=1`` is 2 here, and 3 for SDXL. Default: what the
                model was trained with (1, and 2 for SDXL).
            prompt_embeds: What the text encoder makes of a prompt, in place of ``prompt``: float32
                ``(1 or num_images, tokens, dim)``, of the types that ``latents`` takes.
            pooled_prompt_embeds: SDXL's pooled vector beside it, ``(1 or num_images, width)``.
            negative_prompt_embeds: As ``prompt_embeds`` in place of ``negative_prompt``. Either may be
                shorter than the other by multiples of 77 tokens.
            negative_pooled_prompt_embeds: As ``pooled_prompt_embeds``.
            num_inference_steps: Number of steps, from 1 to the model's timesteps (1000).
            guidance_scale: How far the pictures follow the prompt (classifier-free guidance),
                finite and at least 0. At most 1 means without guidance, in half the time. Several
                lie evenly along the run, with straight lines between them.
            guidance_rescale: Gives guided pictures back the contrast that guidance takes, from 0 to 1.
            guidance_interval: The shares of the run, from 0 to 1, between which guidance is on.
            image_guidance_scale: How far an instruct-pix2pix model follows the picture that it
                changes.
            cfg_zero_star: CFG-Zero*: how many of the first steps change nothing, while the answer without the
                prompt is fitted to the other in all steps. Default: off.
            pag_scale: Perturbed-attention guidance: how far to go away from what the model draws with blind
                self-attention, for clearer structure and half as much time again. 0 is off; usual is 3.
            pag_adaptive_scale: What ``pag_scale`` loses with each timestep below 1000.
            pag_applied_layers: The self-attention layers that are blind, by parts of their names, such as
                ``"mid"`` or ``"up.block_0"``. Default: ``"mid"``.
            image: What the run starts from: a picture of PIL or uint8 ``(height, width, 3)``, or a list
                with one for each picture of the call, or clean latents as float32 ``(1 or
                num_images, channels, height / 8, width / 8)``. Instruct-pix2pix models change it
                as the prompt tells. Pictures are brought to ``width`` and ``height``; the default is
                their own size, rounded down to multiples of 8.
            strength: How much of it changes, from 0 to 1: the share of the steps that is done, rounded
                down, as in diffusers. Default: 0.8, and 1 with a mask or margins and for
                instructions.
            resize_mode: How pictures of other proportions are brought to the size.
            mask_image: A grey picture of PIL, or uint8 ``(height, width)``, of the size of ``image``:
                what is bright (128 and more) changes, the rest stays.
            mask_blur: How soft the edge of the mask is: the deviation of a Gaussian in pixels.
                Default: 0, and 4 with margins.
            padding_mask_crop: Works on the mask and so many pixels around it alone, at ``width`` and
                ``height``, which default to the model's own size then.
            paste_back: Whether what the mask leaves alone keeps its own pixels, to the bit.
            masked_content: What is under the mask at the start, at strengths below 1. Default:
                ``"original"``, and ``"fill"`` with margins.
            margins: ``(left, top, right, bottom)``: grows ``image`` by so many pixels (outpainting).
            hires: A second pass in a larger size.
            deep_shrink: Smaller inner levels in the first part of the run, for pictures larger than the model
                knows.
            deep_cache: Asks the UNet's inner levels in each so-many-th evaluation alone, from 1, all, to
                1000, and takes over what they found in the others: faster, and a little different.
            tgate: After how many steps the text is read no more, from 1: guidance ends there, and
                cross-attention answers what it found last; faster, and different in details. It takes one
                prompt at a time. Usual is 10 of 25 steps.
            token_merging: Which share of the tokens is merged with similar ones for self-attention, from 0
                to 0.9, usually 0.5: faster the larger the picture is, and a little different.
            seamless: Whether copies of the picture fit side by side: in both directions, or along ``"x"`` or
                ``"y"`` alone.
            vae_tiling: Whether the autoencoder works in blended tiles, which take less memory: ``"off"``,
                ``"auto"`` (above 1024 x 1536 pixels), or a tile's side in pixels and the share of it
                that the next one covers too, as ``(512, 0.25)``. Default: ``"auto"``.
            vae_slicing: Whether the autoencoder works off one picture of a batch at a time.
            width: In pixels, a multiple of the autoencoder's factor (8). Default: that of the
                model.
            height: As ``width``.
            seed: The seed of the first picture, from 0 to 2**64 - 1; the next pictures have the
                seeds that follow. The noise is that of a ``torch.Generator("cpu")`` with this seed;
                its lower 32 bits count. Default: a random one, told in ``Output.seeds``.
            num_images: Number of pictures, at least 1.
            batch_size: How many of them are worked on at once, at least 1. More is faster on a GPU
                and takes more memory; 1 gives each picture the same bits whatever stands beside it.
            eta: The share of fresh noise in each step, from 0 to 1, for schedulers that have one
                (DDIM, TCD, the ancestral ones and those of stochastic equations). Default: the
                scheduler's own.
            scheduler: A name of :func:`schedulers`, a label of A1111 or a diffusers class, with one
                of :func:`sigma_schedules` at its end for other noise levels (``"euler"``,
                ``"DPM++ 2M Karras"``, ``"DDIMScheduler"``); or a diffusers scheduler configuration
                as a mapping or as JSON, where the model's own speaks for absent fields, which may
                hold ``sigmas`` or ``timesteps`` of your own. Default: the model's own.
            latents: The noise to start from, in place of the seed's: float32 of unit variance,
                ``(num_images, channels, height / 8, width / 8)``, as a numpy array, a PyTorch
                tensor on the CPU, or anything else with the buffer protocol or ``__array__``. It
                sets the size, where ``width`` and ``height`` do not. With ``denoising_start`` they
                are the latents to go on from.
            noise: The unit noise to start from or to put on ``image``, of the types and the shape of
                ``latents``, or one for all pictures. The same noise for every frame of a film keeps
                it from flickering.
            variation: Another seed and its share, from 0 to 1, in the noise: pictures near that of
                ``seed``, as A1111's variation seeds. Several pictures have the same seed then, and
                the other ones that follow.
            denoising_start: Goes on from ``latents`` that a run with ``denoising_end`` of the same
                share left, as SDXL's refiner does; from 0 to 1.
            denoising_end: Leaves the last ``1 - denoising_end`` of the model's timesteps to another
                model, from 0 to 1. ``output_type="latent"`` hands them on.
            original_size: ``(height, width)`` that SDXL is told the picture had before it was cropped,
                in pixels; small ones give soft pictures. Default: the size of the picture.
            crops_coords_top_left: ``(top, left)``: what SDXL is told was cropped away there.
            target_size: ``(height, width)`` that SDXL is told the picture has. Default: its size.
            negative_original_size: What SDXL is told beside the negative prompt. If none of the three
                is given: the same as beside the prompt; otherwise the other two have the
                defaults above, as in diffusers.
            negative_crops_coords_top_left: As ``negative_original_size``.
            negative_target_size: As ``negative_original_size``.
            aesthetic_score: How much viewers shall like the picture, from 0 to 10: what SDXL's refiner
                is told beside the prompt.
            negative_aesthetic_score: The same beside the negative prompt.
            control: A picture to follow by a ControlNet or T2I-Adapter, or several, which add up.
            ip_adapter_image: A picture as prompt, of the types that :class:`Control` takes; or a list
                with an entry for each of the pipeline's IP-Adapters, a picture or a list of them.
                None runs as if there were no adapter.
            ip_adapter_scale: How strongly the pictures count, 0 not at all; or a list with a number
                for each adapter.
            output_type: What ``Output.images`` holds: ``"pil"`` (needs Pillow), ``"np"`` or
                ``"latent"`` (both need numpy).
            callback: Called with a :class:`Progress` after each step, in the calling thread. If it
                returns ``False`` the run stops with :class:`Cancelled`; an exception that it raises
                stops the run and comes out of this call. Ctrl-C, too, takes effect between steps.
            cancel_token: Stops the run from another thread.
            keep_cancelled: Whether a run that is cancelled among its steps gives what it has come to, in
                place of :class:`Cancelled`: the pictures of its first batches, those of the last one
                as its last step estimates them, and a warning.

        Raises:
            InvalidArgumentError: An argument is out of range or does not fit the model.
            UnsupportedError: This version does not know the scheduler, or cannot make pictures from
                a prompt alone with this model.
            OutOfMemoryError: The pictures would not fit into memory.
            Cancelled: ``callback`` returned ``False``, or ``cancel_token`` was cancelled.
            DeviceError: The device failed.
            ImportError: ``output_type`` needs a package that is not installed.
        """
        told = locals()
        _arrays.check_output_type(output_type)
        _check_callback(callback)
        request = _request.build(self._native, told)
        run = self._native.generate_latents(request, callback)
        start = time.perf_counter()
        texts = run["warnings"]
        if output_type == "latent":
            images = _arrays.to_numpy(*run["latents"])
        else:
            is_pasted = mask_image is not None or margins is not None
            data, shape = run["estimate"] or run["latents"]
            images, more = self._decode(data, shape, output_type, request, is_pasted)
            texts += more
        timings = {
            "encode": run["encode_seconds"],
            "sample": run["sample_seconds"],
            "decode": time.perf_counter() - start,
        }
        provenance = [Provenance(text or "", record or "") for text, record in run["provenance"]]
        return Output(images, run["seeds"], texts, timings, provenance)

    def interpolate(
        self,
        keys: Iterable[tuple[str, SupportsIndex]],
        frames_per_segment: SupportsIndex,
        *,
        closed: bool = False,
        output_type: Literal["pil", "np"] = "pil",
        callback: Callable[[Progress], object] | None = None,
        **arguments: Any,
    ) -> Any:
        """Makes the frames of a way through key frames, each a prompt and a seed. :func:`save_animation`
        makes a film of them.

        >>> keys = [("a red heart, flat style", 1), ("a green heart, flat style", 2)]
        >>> frames = pipe.interpolate(keys, 12, closed=True, num_inference_steps=20)
        >>> diffusion_py.save_animation(frames, "loop.webp")

        Args:
            keys: Prompts and seeds, at least two. Between two of them the conditioning goes along a
                straight line and the noise along an arc.
            frames_per_segment: Frames from one key frame to the next, of which the first is the key frame.
            closed: Whether the way leads back to the first key frame, for a loop without a seam.
            output_type: ``"pil"`` or ``"np"``.
            callback: As in :meth:`generate`; ``Progress.images`` counts the frames.
            **arguments: What all frames share, as in :meth:`generate`: size, steps, scheduler, guidance, the
                negative prompt, ``cancel_token``. A prompt, a seed or a number of pictures does not count.

        Returns:
            As ``Output.images``. What the caller should know comes as a Python warning.

        Raises:
            InvalidArgumentError: Less than two keys, latents, or an argument out of range.
            Cancelled: As in :meth:`generate`.
        """
        _arrays.check_output_type(output_type, "pil", "np")
        _check_callback(callback)
        told = inspect.signature(self.generate).bind(**arguments)
        told.apply_defaults()
        request = _request.build(self._native, told.arguments)
        seeded = [(prompt, _arguments.whole("keys", seed)) for prompt, seed in keys]
        count = _arguments.whole("frames_per_segment", frames_per_segment)
        raw, texts = self._native.interpolate(request, seeded, count, closed, callback)
        for text in texts:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return _arrays.to_pictures(raw, output_type)

    def memory_estimate(
        self,
        width: SupportsIndex | None = None,
        height: SupportsIndex | None = None,
        batch_size: SupportsIndex = 1,
    ) -> int:
        """About how many bytes a run needs at its peak beside the weights.

        Args:
            width: In pixels. Default: that of the model.
            height: As ``width``.
            batch_size: Pictures that are worked on at once.
        """
        default_width, default_height = self.default_size
        return self._native.memory_estimate(
            _arguments.whole("width", default_width if width is None else width),
            _arguments.whole("height", default_height if height is None else height),
            _arguments.whole("batch_size", batch_size),
        )

    def decode(
        self, latents: numpy.ndarray[Any, Any] | Any, output_type: Literal["pil", "np"] = "pil"
    ) -> Any:
        """Makes pictures from latents: from those of ``output_type="latent"``, or a preview from
        ``Progress.denoised``.

        Args:
            latents: Float32, ``(n, channels, height / 8, width / 8)``, scaled for the UNet; of the
                types that :meth:`generate` takes.
            output_type: ``"pil"`` or ``"np"``.

        Returns:
            As ``Output.images``. What the caller should know comes as a Python warning.

        Raises:
            InvalidArgumentError: The shape or type does not fit.
            DeviceError: The device failed.
            ImportError: ``output_type`` needs a package that is not installed.
        """
        _arrays.check_output_type(output_type, "pil", "np")
        images, texts = self._decode(*_arrays.from_array("latents", latents), output_type)
        for text in texts:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return images

    def _decode(
        self,
        data: bytes | bytearray,
        shape: list[int],
        output_type: str,
        request: NativeRequest | None = None,
        is_pasted: bool = False,
    ) -> tuple[Any, list[str]]:
        is_rgb8 = output_type == "pil" or is_pasted
        raw, texts = self._native.decode(data, shape, is_rgb8, request)
        return _arrays.to_pictures(raw, output_type) if is_rgb8 else _arrays.to_numpy(*raw), texts

    def __repr__(self) -> str:
        width, height = self.default_size
        return f"<diffusion_py.Pipeline, {width} x {height}>"


def _check_callback(callback: object) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function, found {type(callback).__name__}")
