"""Flags and exit status that the commands which train and check the sample's models share."""

from typing import Annotated

import typer

EXIT_FAILED = 1
"""A checked model is not good enough."""

LearningRate = Annotated[float, typer.Option(min=0, help="AdamW's largest learning rate.")]

Check = Annotated[
    bool, typer.Option("--check", help="Measure the model in OUT instead. Status 1: it is not good enough.")
]

Threads = Annotated[int, typer.Option(min=1, help="Threads of the arithmetic.")]

Workers = Annotated[int, typer.Option(min=1, help="Processes that draw.")]
