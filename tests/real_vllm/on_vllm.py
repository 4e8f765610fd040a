"""What the tests with real vLLM know of each other. (A file conftest.py cannot be imported by name: there are two.)"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
LENGTH = 256  # tokens that the model of the tests has positions for
