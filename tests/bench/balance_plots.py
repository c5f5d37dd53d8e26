"""Plots of `bench_balance`; needs matplotlib, which nothing else does."""

import matplotlib as mpl
import matplotlib.pyplot as plt

mpl.use("Agg")


def plot_throughput(points, path):
    """Throughput relative to AR over concurrency: a row of plots per machine."""
    machines = sorted({point["machine"] for point in points}, reverse=True)
    workloads = list(dict.fromkeys(point["workload"] for point in points))
    figure, grid = plt.subplots(
        len(machines), len(workloads), figsize=(3.2 * len(workloads), 5.6), sharex=True
    )
    for line, machine in zip(grid, machines, strict=True):
        for axes, name in zip(line, workloads, strict=True):
            own = [p for p in points if p["machine"] == machine and p["workload"] == name]
            for policy in own[0]["policies"]:
                rates = [
                    p["policies"][policy]["tokens_per_s"] / p["policies"]["ar"]["tokens_per_s"]
                    for p in own
                ]
                style = {"linewidth": 2.4, "color": "black"} if policy == "auto" else {}
                axes.plot([p["concurrency"] for p in own], rates, label=policy, **style)
            axes.set_xscale("log", base=2)
            axes.set_title(f"{name}, {machine.replace('_', ' ')}", fontsize=9)
            axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("tokens per second / AR's")
    grid[1][0].set_ylabel("tokens per second / AR's")
    for axes in grid[-1]:
        axes.set_xlabel("concurrency")
    grid[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def plot_decisions(lines, path):
    """Mean width, share of AR and price while the load rises and falls."""
    figure, grid = plt.subplots(4, 1, figsize=(7, 7), sharex=True)
    for axes, name in zip(grid, ("concurrency", "mean_width", "ar_share", "price"), strict=True):
        axes.step(range(len(lines)), [line[name] for line in lines], where="post")
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.3)
    grid[-1].set_xlabel("time, in parts of 25 steps")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
