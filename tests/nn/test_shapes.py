"""Shape checks: whatever does not fit is one clear error, and whatever fits goes through."""

import subprocess
import sys
import threading
import types

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.nn.shapes import ShapeError, check_token_ids, checked, unchecked
from conftest import names


@checked
def mix(
    x: Float[Tensor, "batch seq embed"],
    mask: Bool[Tensor, "#batch 1 seq seq_k"] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "batch seq embed"]:
    """Stand for any function with named axes."""
    return x * scale


@checked
def pairs(*rows: Int[Tensor, "seq"]) -> Int[Tensor, "..."]:
    """Stand for a function with any number of arguments."""
    return torch.cat(rows)


class Config:
    axes = {"embed": 8, "heads": 2}  # noqa: RUF012


class Part(nn.Module):
    """Stand for a module whose configuration fixes some axes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()

    @checked
    def forward(self, x: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch heads"]:
        """Give as many columns as asked of the last one."""
        return x[:, :2] if x.shape[0] < 5 else x

    @checked
    def halve(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "half width"]:
        """Call itself on fewer rows: each call has names of its own."""
        return x if x.shape[0] == 1 else self.halve(x[::2])


X = torch.zeros(2, 5, 8)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((X[0],), ["`x`", "2 axes", "3", "(5, 8)", 'Float[Tensor, "batch seq embed"]']),
        ((X[0, 0],), ["`x`", "1 axis", "3"]),
        ((X.long(),), ["`x`", "int64", "floating-point"]),
        (([1, 2],), ["`x`", "[1, 2]", "list", 'Float[Tensor, "batch seq embed"]']),
        ((None,), ["`x`", "None", "NoneType"]),
        ((X, X), ["`mask`", "float32", "bool"]),
        ((X, 3), ["`mask`", "3", "int", "| None"]),
        ((X, torch.ones(2, 2, 5, 5) > 0), ["`mask`", "2", "`1`"]),
        ((X, torch.ones(3, 1, 5, 5) > 0), ["`mask`", "3", "`batch`", "2", "`x`"]),
        ((X, torch.ones(1, 1, 4, 5) > 0), ["`mask`", "4", "`seq`", "5", "`x`"]),
        ((X, None, "big"), ["`scale`", "'big'", "str", "float"]),
    ],
)
def test_a_misfit_is_one_error_that_names_everything(arguments: tuple[object, ...], parts: list[str]) -> None:
    names = ("x", "mask", "scale")
    for call in (lambda: mix(*arguments), lambda: mix(**dict(zip(names, arguments, strict=False)))):
        with pytest.raises(ShapeError) as raised:
            call()
        assert str(raised.value).startswith("mix: ")
        assert all(part in str(raised.value) for part in parts), str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None  # one error, not a chain of three libraries'


def test_what_fits_goes_through() -> None:
    mask = torch.ones(1, 1, 5, 9) > 0
    assert mix(X, mask, 2).shape == X.shape  # an int is a float
    assert mix(X, mask.expand(2, 1, 5, 9)).shape == X.shape
    assert mix(X.bfloat16()).dtype == torch.bfloat16
    assert mix(nn.Parameter(X)).shape == X.shape


def test_every_one_of_many_arguments_is_checked() -> None:
    one = torch.arange(3)
    assert pairs(one, one).shape == (6,)
    with pytest.raises(ShapeError, match=names("pairs", "`rows`", 4, "`seq`", 3)):
        pairs(one, torch.arange(4))


def test_sizes_that_a_configuration_fixes_hold_from_the_start() -> None:
    part = Part()
    assert part(torch.zeros(3, 8)).shape == (3, 2)
    with pytest.raises(ShapeError, match=names("`x`", 7, "`embed`", 8)):
        part(torch.zeros(3, 7))


def test_the_result_is_checked_too() -> None:
    with pytest.raises(ShapeError, match=names("Part.forward", 8, "`heads`", 2)):
        Part()(torch.zeros(5, 8))


def test_a_call_like_one_that_fitted_passes_and_any_other_is_examined() -> None:
    part = Part()
    for rows in (1, 1, 1, 4, 1):
        part(torch.zeros(rows, 8))
    for wrong in (torch.zeros(2, 7), torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, 1), [[0.0] * 8] * 2):
        with pytest.raises(ShapeError):
            part(wrong)
    other = Part()
    other.config = types.SimpleNamespace(axes={"embed": 9, "heads": 2})
    with pytest.raises(ShapeError, match=names("`embed`", 8, 9)):
        other(torch.zeros(2, 8))
    with pytest.raises(ShapeError):
        mix(X, X)
    assert mix(X, scale=2.0).shape == X.shape
    with pytest.raises(ShapeError, match="`scale`"):
        mix(X, scale="2")
    with pytest.raises(ShapeError, match="`mask`"):
        mix(X, mask=2.0)


def test_a_result_that_changes_while_the_arguments_do_not_is_examined() -> None:
    results = [torch.zeros(3), torch.zeros(3), torch.zeros(4), torch.zeros(3, dtype=torch.long), [0.0]]

    @checked
    def give(x: Float[Tensor, "seq"]) -> Float[Tensor, "seq"]:
        return results.pop(0)

    assert give(torch.ones(3)).shape == give(torch.ones(3)).shape
    for expected in ((4, "`seq`", 3), ("int64",), ("[0.0]",)):
        with pytest.raises(ShapeError, match=names(*expected)):
            give(torch.ones(3))
    assert results == []  # none was asked for twice


def test_a_call_inside_a_call_has_names_of_its_own() -> None:
    assert Part().halve(torch.zeros(8, 3)).shape == (1, 3)


def test_errors_of_the_function_itself_pass_unchanged() -> None:
    @checked
    def fail(x: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail(torch.zeros(1))


@beartype
def three_axes(x: Float[Tensor, "a b c"]) -> Tensor:
    """Stand for code of others that checks its own arguments."""
    return x


@checked
def passes_on(x: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq embed"]:
    """Give a function a tensor that does not fit it."""
    return three_axes(x)


def test_the_function_at_fault_is_blamed_and_not_its_caller() -> None:
    """What fails is the argument of `three_axes`; `passes_on` never gets to a result."""
    with pytest.raises(BeartypeCallHintViolation, match=r"three_axes\(\).* x=") as raised:
        passes_on(X[0])
    assert not isinstance(raised.value, ShapeError)
    assert "passes_on" not in str(raised.value)


def test_a_shape_error_is_a_type_error() -> None:
    assert issubclass(ShapeError, TypeError)


def test_unchecked_lets_anything_through_and_ends_with_its_block() -> None:
    with unchecked():
        with unchecked():
            mix(X[0])
        mix(X[0])
    with pytest.raises(ShapeError):
        mix(X[0])
    with pytest.raises(RuntimeError, match="mine"), unchecked():
        raise RuntimeError("mine")
    with pytest.raises(ShapeError):
        mix(X[0])


def test_unchecked_is_for_its_own_thread() -> None:
    raised: list[Exception] = []

    def elsewhere() -> None:
        try:
            mix(X[0])
        except ShapeError as error:
            raised.append(error)

    with unchecked():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(raised) == 1


AS_THE_ENVIRONMENT_SAYS = """
import importlib, os
for setting in ("off", "0", "on"):
    os.environ["ALLFORMERS_CHECKS"] = setting
    import allformers.nn.shapes
    checked = importlib.reload(allformers.nn.shapes).checked
    def f(): ...
    print(setting, "as it was" if checked(f) is f else "checked")
"""


def test_the_environment_removes_checks_altogether() -> None:
    command = [sys.executable, "-c", AS_THE_ENVIRONMENT_SAYS]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["off as it was", "0 as it was", "on checked"]


def test_under_the_compiler_checks_step_aside() -> None:
    compiled = torch.compile(mix, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X + 1, None, 2.0), X + 2 - X + X)


def test_token_ids_outside_the_vocabulary_are_named() -> None:
    check_token_ids(torch.tensor([[0, 9]]), 10)
    check_token_ids(torch.zeros(0, dtype=torch.long), 10)
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match=names(wrong, 0, 9)):
            check_token_ids(torch.tensor([[3, wrong]]), 10)
        with unchecked():
            check_token_ids(torch.tensor([[3, wrong]]), 10)


SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(SIZES, SIZES)
def test_two_arguments_fit_exactly_if_they_agree_on_every_shared_axis(left: list[int], right: list[int]) -> None:
    @checked
    def both(x: Float[Tensor, "batch seq"], y: Float[Tensor, "seq embed"]) -> None: ...

    fits = len(left) == len(right) == 2 and left[1] == right[0]
    try:
        both(torch.zeros(left), torch.zeros(right))
    except ShapeError:
        assert not fits
    else:
        assert fits
