"""Lessons in a real window: mouse on every slider and label, then close. They run in `test_window.py LESSON...`, one after another."""
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def screen():
    """The environment of a process that may open a window: on the reader's display, else on one of Xvfb."""
    env, server = dict(os.environ, MPLBACKEND="TkAgg"), None
    give_up = pytest.fail if os.environ.get("WINDOWS_MUST_OPEN") else pytest.skip
    if sys.platform == "linux" and not env.get("DISPLAY"):
        if not shutil.which("Xvfb"):
            give_up("no display, and no Xvfb to make one")
        server = subprocess.Popen(["Xvfb", "-displayfd", "1", "-screen", "0", "1600x1000x24", "-nolisten", "tcp"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        env["DISPLAY"] = ":" + server.stdout.readline().strip()  # a free number, told when it is ready
    try:
        probe = [sys.executable, "-c", "import tkinter; tkinter.Tk()"]
        if subprocess.run(probe, env=env, capture_output=True).returncode:
            give_up("no tkinter, or it can open no window")
        yield env
    finally:
        if server:
            server.terminate()
            server.wait()


WIDGETS = {"01_problem": 1, "02_ddpm_forward": 1, "03_elbo": 1, "04_ancestral": 1, "05_cfm": 1, "06_euler": 1,
           "07_bridge": 1, "08_dit": 1, "09_knobs": 1, "10_discrete": 1, "11_vq": 1, "12_maskgit": 2, "13_unified": 1,
           "14_reasoning_gen": 1, "15_hybrid": 1}


@pytest.fixture(scope="module")
def driven(screen, tmp_path_factory):
    """{lesson: what its window said}, by two processes."""
    folders = [tmp_path_factory.mktemp("windows") for _ in range(2)]  # before the threads, which would race for the first

    def drive_half(i):
        command = [sys.executable, __file__, *(str(ROOT / f"{name}.py") for name in list(WIDGETS)[i::2])]
        done = subprocess.run(command, cwd=folders[i], env=screen, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return re.findall(r"^mouse\|(\d\d_\w+)\n(.*?^mouse\|closed)$", done.stdout, re.M | re.S)
    with ThreadPoolExecutor(2) as pool:
        return dict(sum(pool.map(drive_half, range(2)), []))


@pytest.mark.parametrize("name", WIDGETS)
def test_mouse_and_close(driven, name):
    *events, end = [line.split("|")[1:] for line in driven[name].splitlines() if line.startswith("mouse|")]
    assert end == ["closed"] and len({event[0] for event in events}) == WIDGETS[name], driven[name]
    for widget, what, effect in events:
        assert effect == "as it should", (widget, what, effect)


def drive(canvas, widgets):
    """Events of Tk's mouse, a yield after each; prints the effect."""
    tk = canvas.get_tk_widget()
    def picture():  # as last drawn, without the widgets
        pixels = np.array(canvas.buffer_rgba())
        for box in (w.ax.bbox for w in widgets.values()):
            pixels[-int(box.y1) - 9:len(pixels) - int(box.y0) + 9] = 0
        return pixels
    def mouse(name, what, state, goal, *places):  # pressed at the first place, let go at the last
        before, old = picture(), state()
        for event, (x, y) in zip(["<ButtonPress-1>", *["<Motion>"] * len(places)], [*places, places[-1]]):
            tk.event_generate(event, x=int(x), y=int(tk.winfo_height() - y))
        tk.event_generate("<ButtonRelease-1>", x=int(x), y=int(tk.winfo_height() - y))
        tk.update()  # to the end of what waits for an idle loop
        changed = (picture() != before).any()
        good = goal(state()) and bool(changed) == (state() != old)
        print(f"mouse|{name}|{what}|{'as it should' if good else (old, state(), changed)}")
    tk.update()  # the first picture, in the window's own resolution
    for _ in range(4):  # the layout comes to rest: what is left of a move shrinks to a quarter with each drawing
        canvas.draw()
    for name, w in widgets.items():
        box, slider = w.ax.bbox, hasattr(w, "valmin")  # the box moves with the layout
        mouse(name, "beside", lambda: w.val if slider else 0, lambda new: True, (box.x0 + 9, box.y1 + 5))
        for path in [[0.3, 0.1, -9]] if slider else ():  # a click, a move, and beyond the lower end, where draws cost least
            goal = w.valmin + min(max(path[-1], 0), 1) * (w.valmax - w.valmin)
            error = (w.valstep or 0) / 2 + (w.valmax - w.valmin) / 40  # half a step and a pixel
            mouse(name, path, lambda: w.val, lambda new: abs(new - goal) <= error,
                  *[(box.x0 + f * box.width, box.y0 + box.height / 2) for f in path])
            yield
        for label in () if slider else [*w.labels, w.labels[0]]:
            mouse(name, label.get_text(), lambda: w.value_selected, lambda new: new == label.get_text(),
                  label.get_window_extent().get_points().mean(0))
            yield


if __name__ == "__main__":
    import matplotlib.pyplot as plt
    show = plt.show
    def show_and_drive():  # the real show(), with the mouse at work inside its loop
        names, canvas = sys._getframe(1).f_globals, plt.gcf().canvas
        found = {id(w): (n, w) for n, w in reversed(names.items()) if type(w).__name__ in ("RadioButtons", "Slider")}
        events = drive(canvas, dict(found.values()))  # each once, though a loop may have named it again
        window = canvas.manager.window

        def tick(goes_on=False):
            try:
                goes_on = next(events, True) is None
            finally:  # closed as a window manager asks for it, after a failure too
                window.after(20, tick) if goes_on else window.tk.call(window.protocol("WM_DELETE_WINDOW"))
        window.after(500, tick)
        show()
    plt.show = show_and_drive
    for path in sys.argv[1:]:
        sys.argv = [path, "--iters", "20"]
        torch.set_grad_enabled(True)  # a lesson may end with other settings, as its process ends too
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        print(f"mouse|{pathlib.Path(path).stem}")
        runpy.run_path(path, run_name="__main__")
        print("mouse|closed")
