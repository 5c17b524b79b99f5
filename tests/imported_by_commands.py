# ruff: noqa: F401
"""What the processes of :mod:`commands` have imported before they start."""

import matplotlib.backends.backend_agg
import matplotlib.pyplot
import openai
import peft.tuners.lora
import transformers.models.llama.modeling_llama

from persona_callbacks.apps import commands, define, evaluate, extract, generate, label, report, screen, train
