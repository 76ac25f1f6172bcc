import threading
import time

import pytest
import torch

from vitrail.runtime.workers import InferenceWorkers

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    number = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(number)


def test_results_come_in_the_order_of_the_items(two_threads):
    def slow_if_even(number):
        time.sleep(0.02 * (number % 2 == 0))
        return number * number

    squares = [number * number for number in range(20)]
    with InferenceWorkers(CPU) as workers:
        assert list(workers.run(slow_if_even, range(20))) == squares
        assert list(workers.prepare(slow_if_even, range(20))) == squares


def test_workers_run_side_by_side_with_one_thread_each(two_threads):
    both = threading.Barrier(2, timeout=10)

    def meet(item):
        both.wait()  # would break if one worker ran everything
        return torch.get_num_threads()

    workers = InferenceWorkers(CPU)
    assert workers.number == 2
    with workers:
        assert list(workers.run(meet, range(4))) == [1] * 4
    assert torch.get_num_threads() == 2, "the caller's number comes back"


def test_an_accelerator_has_one_lane_and_torch_keeps_its_threads(two_threads):
    workers = InferenceWorkers(torch.device("cuda"))
    assert workers.number == 1
    with workers:
        assert list(workers.run(lambda item: torch.get_num_threads(), [0])) == [2]


def test_items_are_taken_only_a_few_ahead(two_threads):
    """This keeps memory independent of the number of items."""
    taken = []
    go = threading.Event()

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with InferenceWorkers(CPU) as workers:
        results = workers.run(lambda item: go.wait(10), workers.prepare(lambda item: item, items()))
        threading.Timer(0.3, go.set).start()
        next(results)
        assert len(taken) < 15


def test_an_error_arrives_and_ends_the_workers(two_threads):
    def fail(item):
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"), InferenceWorkers(CPU) as workers:
        list(workers.run(fail, range(3)))
    assert torch.get_num_threads() == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]


def test_an_error_of_the_items_arrives(two_threads):
    def items():
        yield 0
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"), InferenceWorkers(CPU) as workers:
        list(workers.run(lambda item: item, items()))


def test_waiting_is_the_share_of_idle_time(two_threads):
    def items():
        for number in range(6):
            time.sleep(0.05)
            yield number

    with InferenceWorkers(CPU) as starved:
        list(starved.run(lambda item: None, items()))
    with InferenceWorkers(CPU) as fed:
        list(fed.run(lambda item: time.sleep(0.05), range(8)))
    assert 0 < fed.waiting < starved.waiting < 1
    assert InferenceWorkers(CPU).waiting == 0


def test_workers_prepare_items_side_by_side(two_threads):
    both = threading.Barrier(2, timeout=10)

    def meet(item):
        both.wait()  # would break if the items were prepared one after the other
        return torch.get_num_threads()

    with InferenceWorkers(CPU) as workers:
        assert list(workers.run(lambda number: number + 1, workers.prepare(meet, range(4)))) == [2] * 4
