"""The balance against every fixed choice, over loads, texts and machines, in the simulator.

Sweeps concurrency over synthetic and recorded traces of acceptance (`balance_simulator`, the real
controller) with the policies AR, fixed widths 4, 8, 16 and 32, and auto; checks the targets and
writes `results/balance.json`, and PNG plots where matplotlib is installed.

Run: nice python -m tests.bench.bench_balance [--quick]
"""

import argparse
import importlib.util
import time

import numpy as np

from sampler.balance.balance import WIDTHS, Load
from tests.bench.balance_simulator import MACHINES, Auto, Simulator, simulate, workload
from tests.bench.harness import RESULTS, percentiles, print_table, write_json

FIXED = ("ar", "width_4", "width_8", "width_16", "width_32")
WORKLOADS = ("easy", "mixed", "blind", "hard", "tail", "recorded")
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# What a client is promised between two tokens, for the goodput.
OBJECTIVE_S = {"memory_bound": 0.010, "compute_bound": 0.200}


def point(name, machine, concurrency, *, num_tokens=None):
    """Every policy on the same texts: summaries by policy."""
    texts = workload(name)
    num_tokens = num_tokens or max(8000, concurrency * 400)
    return {
        policy: simulate(
            texts, machine, policy, concurrency=concurrency, num_tokens=num_tokens
        ).summary(OBJECTIVE_S[machine])
        for policy in (*FIXED, "auto")
    }


def compared(name, machine, concurrency, summaries):
    """One line of the table: auto against the best fixed policy, AR, and fixed steps."""
    rates = {policy: summary["tokens_per_s"] for policy, summary in summaries.items()}
    best = max(FIXED, key=rates.__getitem__)
    drafting = max(FIXED[1:], key=rates.__getitem__)
    auto = summaries["auto"]
    return {
        "workload": name,
        "machine": machine,
        "concurrency": concurrency,
        "best_fixed": best,
        "auto_tokens_per_s": rates["auto"],
        "of_best_fixed": rates["auto"] / rates[best],
        "of_ar": rates["auto"] / rates["ar"],
        "steps_saved": 1 - auto["steps_per_token"] / summaries[drafting]["steps_per_token"],
        "rows_per_token": auto["rows_per_token"],
    }


def sweep(workloads=WORKLOADS, machines=tuple(MACHINES), concurrencies=CONCURRENCIES):
    """All lines of the sweep, and the summaries behind them."""
    lines, points = [], []
    for name in workloads:
        for machine in machines:
            for concurrency in concurrencies:
                summaries = point(name, machine, concurrency)
                lines.append(compared(name, machine, concurrency, summaries))
                points.append({**lines[-1], "policies": summaries})
    return lines, points


def targets(lines):
    """What was asked for, and what the sweep reached."""
    mixed = [line for line in lines if line["workload"] == "mixed"]
    tail = [line for line in lines if line["workload"] == "tail"]
    pays = [line["of_best_fixed"] for line in mixed if line["best_fixed"] != "ar"]
    unsaturated = [line["of_best_fixed"] for line in mixed if line["of_ar"] > 1.01]
    return {
        "least_of_best_fixed": min(line["of_best_fixed"] for line in lines),
        "least_of_ar": min(line["of_ar"] for line in lines),
        "mixed_where_drafts_pay_least": min(unsaturated, default=None),
        "mixed_where_drafts_pay_mean": float(np.exp(np.mean(np.log(unsaturated)))),
        "mixed_where_a_width_is_best_least": min(pays, default=None),
        "mixed_all_loads_mean": float(np.exp(np.mean(np.log([x["of_best_fixed"] for x in mixed])))),
        "tail_steps_saved_alone": next(x["steps_saved"] for x in tail if x["concurrency"] == 1),
    }


def controller_cost(num_sequences, *, num_steps=400):
    """Microseconds of the controller in a step with every kind of sequence, half in each phase."""
    generator = np.random.default_rng(0)
    balance = Auto(num_sequences, MACHINES["memory_bound"], generator).balance
    for seat in range(num_sequences):
        balance.seat(seat, cap=32, is_seeded=False)
    times_us = []
    running = np.arange(num_sequences)
    for step in range(num_steps):
        starting = running[step % 2 :: 2] if num_sequences > 1 else running
        rounds, singles = starting[::2], starting[1::2]
        offered = np.full(rounds.size, 15)
        confirmed = generator.integers(0, 16, rounds.size)
        uncertainty = generator.uniform(0, 0.3, num_sequences)
        load = Load(running, 4096, 4 * num_sequences, 0, 0, 0, 500 * num_sequences)
        started_s = time.perf_counter()
        balance.observe_rounds(rounds, offered, confirmed, uncertainty[: rounds.size])
        if singles.size:
            balance.observe_singles(singles, uncertainty[: singles.size])
        balance.choose(starting, load)
        times_us.append((time.perf_counter() - started_s) * 1e6)
    return {"sequences": num_sequences, **percentiles(times_us[50:], 10, 50, 90, 99)}


def decisions_over_time():
    """Price and widths while the load rises and falls: mixed texts on a memory-bound machine."""
    generator = np.random.default_rng(5)
    machine = MACHINES["memory_bound"]
    lines = []
    for concurrency in (4, 16, 64, 128, 64, 16, 4):
        policy = Auto(concurrency, machine, generator)
        simulator = Simulator(workload("mixed"), machine, policy, concurrency=concurrency)
        for part in range(6):
            before = policy.balance.counts.chosen.copy()
            simulator.advance(num_steps=25)
            chosen = policy.balance.counts.chosen - before
            lines.append(
                {
                    "part": part,
                    "concurrency": concurrency,
                    "price": policy.balance.price,
                    "ar_share": float(chosen[0] / max(chosen.sum(), 1)),
                    "mean_width": float(chosen @ np.array(WIDTHS) / max(chosen.sum(), 1)),
                }
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer loads, two kinds of text")
    quick = parser.parse_args().quick
    lines, points = sweep(("mixed", "tail"), concurrencies=(1, 16, 128)) if quick else sweep()
    print_table(lines)
    reached = targets(lines)
    costs = [controller_cost(count) for count in (1, 16, 64, 256)]
    print("\n".join(f"{name}: {value:.3f}" for name, value in reached.items()))
    print("microseconds of the controller a step")
    print_table(costs)
    if quick:
        return
    decisions = decisions_over_time()
    content = {
        "targets": reached,
        "controller_us": costs,
        "decisions": decisions,
        "points": points,
    }
    print(write_json("balance", content))
    if importlib.util.find_spec("matplotlib") is not None:
        from tests.bench.balance_plots import plot_decisions, plot_throughput

        plot_throughput(points, RESULTS / "balance_throughput.png")
        plot_decisions(decisions, RESULTS / "balance_decisions.png")


if __name__ == "__main__":
    main()
