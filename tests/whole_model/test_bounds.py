"""What a question about a whole model counts has bounds: no figure of a file takes all memory."""

import pytest

from sim.cli.kinds import question_of
from sim.inputs.files import InputError
from sim.runs.scenario import read_scenario

MODEL = 'model=[{{model="llama-3-8b",{}}}]'


@pytest.mark.parametrize(
    ("name", "setting", "key", "most"),
    [
        ("serving", "serving.{}", "requests", 10**5),
        ("serving", "serving.{}", "max_batch", 2**16),
        ("serving", "serving.{}", "prefill_tokens", 2**20),
        ("serving", "serving.{}", "context", 10**8),
        ("consumer_24gb", "defaults.{}", "batch", 2**16),
        ("context_windows", MODEL, "batch", 2**16),
        ("context_windows", MODEL, "seq_len", 10**8),
    ],
)
def test_more_than_a_count_may_be_is_one_line(name, setting, key, most):
    asked = read_scenario(name, (setting.format(f"{key}={most + 1}"),))
    with pytest.raises(InputError, match=f"{key} = {most + 1}: it must be at most {most}"):
        question_of(asked).answer()
