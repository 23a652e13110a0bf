"""Muon for the matrices of a network, AdamW for the rest, with one learning rate for both.

Muon steps along the nearest orthogonal matrix to the momentum, so directions that few examples ask for
(a rare name's picture) move as far as those that all examples share. K. Jordan and others,
"Muon: An optimizer for hidden layers in neural networks", 2024; the scale that lets it share AdamW's
learning rate is from J. Liu and others, "Muon is Scalable for LLM Training", 2025.
"""

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonal(matrices):
    """The nearest (half-)orthogonal matrix to each of [count, rows, columns], by Newton-Schulz rounds.

    The rounds run on the small Gram matrix alone: every round multiplies by a polynomial of it, and such
    polynomials commute, so their product is applied once at the end.
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    a, b, c = QUINTIC
    gram = wide @ wide.mT
    identity = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    # In full precision (no TF32): an error that makes a zero eigenvalue negative grows twelvefold a round.
    product = a * identity + b * gram + c * (gram @ gram)
    factor = product
    for _ in range(ROUNDS - 1):
        gram = gram @ factor @ factor
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product
    wide = product @ wide
    return wide.mT if matrices.shape[-2] > matrices.shape[-1] else wide


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; convolutions count as matrices of [out, in x height x width]."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for parameters in shapes.values():
                self.update(group, parameters)

    def update(self, group, parameters):
        gradients = [parameter.grad for parameter in parameters]
        kept = [self.state[parameter].setdefault("momentum", torch.zeros_like(parameter)) for parameter in parameters]
        torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])
        # Nesterov: the momentum as it will be once the same gradient has come again.
        ahead = torch._foreach_lerp(gradients, kept, group["momentum"])
        steps = orthogonal(torch.stack([step.flatten(1) for step in ahead]))
        scale = 0.2 * max(steps.shape[1:]) ** 0.5
        for parameter, step in zip(parameters, steps):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(step.reshape(parameter.shape), alpha=-group["lr"] * scale)


def optimizers(networks, lr):
    """Muon and AdamW over all parameters: embeddings, first and last convolutions, norms and biases go to AdamW."""
    matrices, others = [], []
    for network in networks:
        for name, parameter in network.named_parameters():
            outer = "embedding" in name or "conv_in." in name or "conv_out." in name
            (others if parameter.ndim < 2 or outer else matrices).append(parameter)
    fused = {"fused": True} if others[0].is_cuda else {"foreach": True}
    return [Muon(matrices, lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, **fused)]
