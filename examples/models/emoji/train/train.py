"""Trains the text encoder and the UNet on the prepared latents for a budget of minutes, in any number of runs."""

import contextlib
import math
import os
import random
import signal
import time

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from captions import COLOURS, caption
from dataset import of_styles
from measure import Gallery, draw, pipeline
from muon import optimizers

VARIANTS = 12  # captions of one picture on one background; a resumed run writes others
EMPTY = 0.1  # share of captions left out, so that guidance has something to lead away from
WHITE = 0.3  # share of pictures on white
LATE = 0.6  # power of the times' share of 0..1; below one draws more from the noisy end
SNR = 5  # above this signal-to-noise ratio the weight falls
WARM_UP = 50  # steps
COOL_DOWN = 0.3  # last share of the budget, in which the learning rate falls to zero
PAUSE = 60  # seconds; a step that took longer was stopped from outside and is not counted
SAY = 60  # seconds between two lines of the curve
SAVE = 240  # seconds between two checkpoints
PROBES = 64  # held prompts of a probe


def networks(base, fresh):
    """The text encoder and the UNet of a diffusers folder, with its weights or, where fresh, with new ones."""
    if fresh:
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder"))
        return text, UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))
    text = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    return text, UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)


def token_ids(tokenizer, texts):
    """[texts, the tokenizer's longest]."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def caption_bank(icons, backgrounds, tokenizer, seed):
    """Token ids [icons, backgrounds, VARIANTS, length] of captions for every picture."""
    chance = random.Random(seed)
    names = list(COLOURS)
    rows = []
    for icon, colours in zip(icons, backgrounds.tolist()):
        texts = [caption(icon, names[colour], chance) for colour in colours for _ in range(VARIANTS)]
        rows.append(token_ids(tokenizer, texts))
    return torch.stack(rows).unflatten(1, (backgrounds.shape[1], VARIANTS))


class Batches:
    """Endless batches of latents and token ids, every icon once before any comes again."""

    def __init__(self, tensors, icons, styles, tokenizer, device, seed):
        rows = of_styles(icons, styles)
        icons, backgrounds = [icons[row] for row in rows], tensors["backgrounds"][rows]
        self.latents = tensors["latents"][rows].to(device)
        self.captions = caption_bank(icons, backgrounds, tokenizer, seed).to(device)
        self.empty = token_ids(tokenizer, [""]).to(device)
        self.device = device
        self.order = torch.empty(0, dtype=torch.long, device=device)

    def next(self, size):
        while len(self.order) < size:
            self.order = torch.cat([self.order, torch.randperm(len(self.latents), device=self.device)])
        icons, self.order = self.order[:size], self.order[size:]
        chance = torch.rand(4, size, device=self.device)
        coloured = 1 + (chance[1] * (self.latents.shape[1] - 1)).long()
        background = torch.where(chance[0] < WHITE, torch.zeros_like(coloured), coloured)
        ids = self.captions[icons, background, (chance[2] * VARIANTS).long()]
        ids = torch.where((chance[3] < EMPTY)[:, None], self.empty, ids)
        return self.latents[icons, background].float(), ids


def loss_of(text, unet, alphas, latents, ids):
    """The v-prediction's squared error, [1].

    Times are spread over the batch, which makes the mean steadier, two thirds of them in the noisier half: there the
    text decides what is drawn, and the error is largest. The weight caps what nearly clean pictures add, as min-SNR's
    does (T. Hang and others, 2023), but stays 1 up to pure noise, where a v-prediction's error is the picture's own.
    """
    count = len(latents)
    spread = (torch.arange(count, device=latents.device) + torch.rand(count, device=latents.device)) / count
    # Rounding may make a share of 1, which is past the last time.
    times = (spread**LATE * len(alphas)).long().clamp(max=len(alphas) - 1)
    noise = torch.randn_like(latents)
    kept = alphas[times].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    states = text(ids).last_hidden_state
    found = unet(noisy.contiguous(memory_format=torch.channels_last), times, encoder_hidden_states=states).sample
    ratio = alphas[times] / (1 - alphas[times]).clamp(min=1e-6)
    weight = SNR / ratio.clamp(min=SNR)
    return ((found.float() - velocity).square().mean((1, 2, 3)) * weight).mean()


class Training:
    """Everything that a checkpoint holds, and the loop."""

    def __init__(self, base, work, tensors, icons, settings):
        self.base, self.work, self.settings = base, work, settings
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.text, self.unet = networks(base, settings.fresh)
        self.text.to(self.device).train()
        self.unet.to(self.device, memory_format=torch.channels_last).train()
        self.parameters = [*self.text.parameters(), *self.unet.parameters()]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizers = optimizers((self.text, self.unet), settings.lr)
        self.step, self.worked, self.curve = 0, 0.0, []
        self.restore()
        scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
        self.alphas = scheduler.alphas_cumprod.float().to(self.device)
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        self.batches = Batches(tensors, icons, settings.styles, tokenizer, self.device, seed=self.step)
        self.gallery = Gallery(tensors, icons)

    @property
    def path(self):
        return self.work / "checkpoint.pt"

    def restore(self):
        if not self.path.exists():
            return
        kept = torch.load(self.path, map_location=self.device, weights_only=False)
        self.text.load_state_dict(kept["text"])
        self.unet.load_state_dict(kept["unet"])
        self.average = kept["average"]
        for optimizer, state in zip(self.optimizers, kept["optimizers"]):
            optimizer.load_state_dict(state)
        self.step, self.worked, self.curve = kept["step"], kept["worked"], kept["curve"]
        torch.set_rng_state(kept["rng"].cpu())
        if self.device.type == "cuda" and kept["rng_cuda"] is not None:
            torch.cuda.set_rng_state(kept["rng_cuda"].cpu())
        print(f"resumed at step {self.step}, {self.worked / 60:.1f} minutes worked", flush=True)

    def save(self):
        cuda = self.device.type == "cuda"
        kept = {
            "text": self.text.state_dict(),
            "unet": self.unet.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "worked": self.worked,
            "curve": self.curve,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if cuda else None,
        }
        torch.save(kept, self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)

    def rate(self):
        """The learning rate: a warm-up, constant, and a cosine's fall over the last part of the budget."""
        done = self.worked / (self.settings.minutes * 60)
        fall = max(0.0, (done - (1 - COOL_DOWN)) / COOL_DOWN)
        return self.settings.lr * min(1, (self.step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, fall)))

    def train_step(self):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
            optimizer.zero_grad(set_to_none=True)
        half = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()
        with half:
            loss = loss_of(self.text, self.unet, self.alphas, *self.batches.next(self.settings.batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(0.9995, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return loss.detach()

    @contextlib.contextmanager
    def averaged(self):
        """The networks with the averaged weights, in evaluation mode."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self.swap(self.average)
        self.text.eval(), self.unet.eval()
        try:
            yield self.text, self.unet
        finally:
            self.swap(kept)
            self.text.train(), self.unet.train()

    @torch.no_grad()
    def swap(self, values):
        torch._foreach_copy_(self.parameters, values)

    def probe(self):
        """Retrieval over the first held prompts with few steps: a rough figure for the curve."""
        with self.averaged() as (text, unet):
            pipe = pipeline(self.base, text=text, unet=unet).to(self.device)
            pairs, prompts = self.gallery.held(self.settings.styles, PROBES)
            pictures = draw(pipe, prompts, steps=10, guidance=4.0)
        first, five = self.gallery.retrieval(pictures, pairs)
        self.curve[-1] |= {"retrieval@1": round(first, 3), "retrieval@5": round(five, 3)}
        print(f"step {self.step}: retrieval@1 {first:.3f}, @5 {five:.3f} of {len(prompts)} held prompts", flush=True)

    def run(self):
        """Works until the budget is used or a signal asks to end; says, probes and saves at their intervals."""
        ended = []
        for asked in (signal.SIGTERM, signal.SIGINT):
            signal.signal(asked, lambda *_: ended.append(True))
        losses, said, probed, saved = [], self.worked, self.worked, self.worked
        while self.worked < self.settings.minutes * 60 and not ended:
            start = time.monotonic()
            losses.append(self.train_step())
            if self.device.type == "cuda" and self.step % 10 == 0:
                torch.cuda.synchronize()
            took = time.monotonic() - start
            self.worked += took if took < PAUSE else 0
            if self.worked - said >= SAY:
                self.say(losses, self.worked - said)
                losses, said = [], self.worked
                if self.worked - probed >= self.settings.probe * 60:
                    self.probe()
                    probed = self.worked
            if self.worked - saved >= SAVE:
                self.save()
                saved = self.worked
        if self.worked > saved:
            self.save()

    def say(self, losses, seconds):
        loss = torch.stack(losses).mean().item()
        self.curve.append({"step": self.step, "minutes": round(self.worked / 60, 2), "loss": round(loss, 4)})
        minutes = f"{self.worked / 60:.1f} min"
        speed = f"{len(losses) * self.settings.batch / seconds:.0f} pictures/s"
        print(f"step {self.step}, {minutes}, loss {loss:.4f}, rate {self.rate():.5f}, {speed}", flush=True)
