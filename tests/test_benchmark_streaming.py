import time

from benchmarks.streaming import share_waited


def slowly(count):
    for number in range(count):
        time.sleep(0.05)
        yield number


def test_the_share_of_waiting_tells_reading_from_working():
    used = []
    assert share_waited(slowly(4), used.append) > 0.6
    assert used == [0, 1, 2, 3]
    assert share_waited((each for each in range(4)), lambda _: time.sleep(0.05)) < 0.4
