"""trtcal build: the same command as scripts/build_engine.py."""

from __future__ import annotations

from typing import Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command; its options belong to calibrators.command, which knows TensorRT's spellings of them."""
    settings: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(context_settings=settings)(build)


def build(context: typer.Context) -> None:
    """Build a TensorRT engine from an ONNX model, calibrating it first: trtcal build --help."""
    from calibrators.command import main

    raise typer.Exit(main(context.args, prog="trtcal build"))
