"""The watermark: minimum over inputs, idle ones excepted, never back."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.watermark import NONE_US, Watermark
from headrace.units import Duration

S = 1_000_000
A, B = ("events", 0), ("events", 1)


def make(delay: str = "0s") -> Watermark:
    return Watermark(Duration.parse(delay), Duration.parse("5s"))


def test_there_is_none_before_the_first_row() -> None:
    assert make().advance(100.0) == NONE_US


def test_it_is_the_minimum_over_inputs_less_the_delay() -> None:
    mark = make("2s")
    mark.see(A, 100 * S, 0.0)
    mark.see(B, 90 * S, 0.0)
    assert mark.advance(1.0) == 88 * S


def test_an_idle_input_does_not_hold_it_back() -> None:
    mark = make()
    mark.see(A, 100 * S, 0.0)
    mark.see(B, 10 * S, 0.0)
    mark.see(A, 200 * S, 6.0)
    assert mark.advance(6.0) == 200 * S


def test_when_all_are_idle_it_goes_on_with_the_clock() -> None:
    mark = make()
    mark.see(A, 100 * S, 0.0)
    assert mark.advance(4.0) == 100 * S
    assert mark.advance(65.0) == 165 * S


def test_an_input_that_stays_empty_holds_it_back_for_idle_after() -> None:
    mark = make()
    mark.watch([A, B], 0.0)
    mark.see(A, 100 * S, 1.0)
    assert mark.advance(2.0) == NONE_US
    mark.see(A, 200 * S, 5.5)
    assert mark.advance(5.5) == 200 * S


def test_silence_counts_from_a_restart_not_from_before() -> None:
    mark = make()
    mark.restore(50 * S, {A: 60 * S}, 1000.0)
    assert mark.advance(1001.0) == 60 * S


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B]), st.integers(-(10**12), 10**12), st.floats(0, 30)), max_size=30
    )
)
def test_it_never_goes_back(moves: list[tuple[tuple[str, int], int, float]]) -> None:
    mark, at, last = make(), 0.0, NONE_US
    for source, newest, pause in moves:
        at += pause
        mark.see(source, newest, at)
        reached = mark.advance(at)
        assert reached >= last
        last = reached
