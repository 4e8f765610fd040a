"""Reward functions as nobody should write them: what they return, raise and log is not what it must be."""

import sys


class Unasked:
    """It can be called, and does not say with what."""

    __signature__ = "completions"

    def __getattr__(self, name):
        raise RuntimeError(f"no {name}")

    def __call__(self, completions, **columns):
        return [1.0] * len(completions)


unasked = Unasked()


class Unworded(Exception):
    """An error that cannot be put into words."""

    def __str__(self):
        raise ValueError


def empties(completions, **columns):
    completions.clear()
    return []


def beyond_float32(completions, **columns):
    return [1e39] * len(completions)


def too_large(completions, **columns):
    return [10**5000] * len(completions)


def exits(completions, **columns):
    sys.exit(0)


def interrupts(completions, **columns):
    raise KeyboardInterrupt


def unworded(completions, **columns):
    raise Unworded


def long_worded(completions, **columns):
    raise ValueError("x" * 10**6)


def logs_text(completions, log_metric=None, **columns):
    log_metric("length", "long")
    return [1.0] * len(completions)


def logs_no_name(completions, log_metric=None, **columns):
    log_metric(3, 1.0)
    return [1.0] * len(completions)


def logs_too_few(completions, log_extra=None, **columns):
    log_extra("verdict", ["right"])
    return [1.0] * len(completions)


def logs_functions(completions, log_extra=None, **columns):
    log_extra("verdict", [lambda: None for _ in completions])
    return [1.0] * len(completions)
