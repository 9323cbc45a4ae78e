"""Models with an optimizer that has taken a step, and checkpoints of them."""

import torch
from runkit import tiny

from hnet_cli.checkpoints.training_state import TrainingState, save_checkpoint
from hnet_cli.training.build import build_model
from hnet_cli.training.optim import build_optimizer

FILES = ["config.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]


def built(*settings, seed=0):
    """A model whose optimizer has taken a step."""
    config = tiny(*settings)
    torch.manual_seed(seed)
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def saved(folder, step, model, optimizer, keep=2, **state):
    state = TrainingState(step=step, **state)
    return save_checkpoint(folder, model, optimizer, state, {"modality": "text", "made": {}}, [4.0], keep)


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())
