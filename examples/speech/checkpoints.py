"""Flax NNX modules and whatever else a training consists of, saved and restored by Orbax."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

OPTIONS = ocp.CheckpointManagerOptions(max_to_keep=1)


def save(manager: ocp.CheckpointManager, step: int, modules: Any, **others: Any) -> None:
    """Saves all state of the modules (a tree of them), and others by `orbax.checkpoint.args`."""
    state = ocp.args.StandardSave(nnx.to_pure_dict(nnx.state(modules)))
    manager.save(step, args=ocp.args.Composite(state=state, **others))


def restore(manager: ocp.CheckpointManager, step: int, modules: Any, **others: Any) -> Any:
    """Fills the modules with what was saved; returns the others, as attributes by their names."""
    state = nnx.state(modules)
    wanted = ocp.args.StandardRestore(nnx.to_pure_dict(state))
    saved = manager.restore(step, args=ocp.args.Composite(state=wanted, **others))
    nnx.replace_by_pure_dict(state, saved.state)
    nnx.update(modules, state)
    return saved


def restore_last(directory: pathlib.Path, modules: Any) -> None:
    """Fills the modules with the last of the checkpoints in a directory.

    Raises:
      FileNotFoundError: there is none.
    """
    if directory.is_dir():
        with ocp.CheckpointManager(directory, options=OPTIONS) as manager:
            last_step = manager.latest_step()
            if last_step is not None:
                restore(manager, last_step, modules)
                return
    raise FileNotFoundError(f"No checkpoint in {directory}: train the recogniser with train.py")
