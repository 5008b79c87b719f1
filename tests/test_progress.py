import io
import time

from rich.console import Console

from train.progress import progress_bar


def test_the_bar_tells_the_speed_and_the_time_left():
    console = Console(file=io.StringIO(), width=160)
    bar = progress_bar(console)
    task = bar.add_task("he, epoch 1 of 2", total=1000, batch=8)

    def shown():
        console.print(bar)
        return console.file.getvalue().splitlines()[-1]

    assert "images/s" not in shown()
    bar.advance(task)
    time.sleep(0.2)  # the first step may take long: it is compiled
    for _ in range(5):
        time.sleep(0.01)
        bar.advance(task)
    words = shown().replace(",", "").split()
    assert words[:5] == ["he", "epoch", "1", "of", "2"]
    speed = float(words[words.index("images/s") - 1])
    assert 8 <= speed <= 8 / 0.01
    minutes, seconds = words[words.index("left") - 1].split(":")[-2:]
    assert 60 * int(minutes) + int(seconds) + 1 >= 994 * 0.01
