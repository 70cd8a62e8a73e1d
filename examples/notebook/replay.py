"""asikit from Python: a recording, policies made in code, causes as tables, charts.

`marimo edit examples/notebook/replay.py` opens it in a browser; `python examples/notebook/replay.py` runs it through.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="asikit from Python")


@app.cell
def _():
    import marimo as mo

    mo.md(
        """
        # asikit from Python

        Everything that the command `asi` does is a call. This notebook opens a recording, replays it under policies
        that it makes itself, and draws what comes out. A cell runs again when something that it uses changes.
        """
    )
    return (mo,)


@app.cell
def _():
    import shlex
    from dataclasses import replace
    from importlib.resources import files
    from pathlib import Path

    import altair as alt
    import polars as pl

    from asikit.cost import price
    from asikit.machine.x86 import load_cpu
    from asikit.record import Recording, record
    from asikit.replay import History, PolicyMemory, Rules, TouchKind, load_policy, replay
    from asikit.trace import PageKind, Trace

    return (
        History,
        PageKind,
        Path,
        PolicyMemory,
        Recording,
        Rules,
        TouchKind,
        Trace,
        alt,
        files,
        load_cpu,
        load_policy,
        pl,
        price,
        record,
        replace,
        replay,
        shlex,
    )


@app.cell
def _(mo):
    command = mo.ui.text(placeholder="ls -l /", label="A command to record")
    mo.md(
        f"""
        ## A recording

        The package brings recordings along; in this one `fio` writes a file to tmpfs and reads it at random. To look at
        a workload of yours, write its command here. It is recorded into this folder first, which takes QEMU and some
        ten seconds.

        {command}
        """
    )
    return (command,)


@app.cell
def _(Path, Recording, Trace, command, files, record, shlex):
    if command.value:
        words = tuple(shlex.split(command.value))
        path = Path(f"{Path(words[0]).name}.asitrace")
        if not path.exists():
            record(Recording(words), path)
    else:
        path = Path(str(files("asikit.data") / "samples" / "page-cache.asitrace"))
    trace = Trace.open(path)
    trace.meta
    return (trace,)


@app.cell
def _(mo):
    mo.md("""
    ## Policies, made in code

    A policy is a value. `replace` makes another one of it: here the ephemeral mapping of `ephmap` for writes, too,
    and a denylist to which tmpfs is no secret. One recording answers for all of them, in one pass.
    """)
    return


@app.cell
def _(
    PageKind,
    PolicyMemory,
    Rules,
    TouchKind,
    load_policy,
    replace,
    replay,
    trace,
):
    denylist = load_policy("denylist-2025")
    ephmap = load_policy("ephmap")
    writes_too = replace(
        ephmap,
        name="writes-too",
        ephmap=replace(
            ephmap.ephmap,
            access=(TouchKind.READ, TouchKind.WRITE),
            functions=(*ephmap.ephmap.functions, "copy_page_from_iter_atomic"),
        ),
    )
    tmpfs_is_public = replace(
        denylist,
        name="tmpfs-is-public",
        memory=PolicyMemory(
            default=denylist.memory.default,
            sensitive=denylist.memory.sensitive,
            nonsensitive=Rules(kinds=(PageKind.SHMEM,)),
        ),
    )
    policies = [denylist, ephmap, writes_too, tmpfs_is_public]
    results = replay(trace, policies)
    return denylist, policies, results


@app.cell
def _(pl, results):
    counts = pl.DataFrame(
        [
            {
                "policy": result.policy,
                "round trips": result.round_trips,
                "without an exit": result.round_trips_without_exit,
                "exits": result.exits,
                "ephemeral mappings": result.ephmap_operations,
            }
            for result in results
        ]
    )
    counts
    return


@app.cell
def _(mo):
    mo.md("""
    ## Why it exits: causes as a table
    """)
    return


@app.cell
def _(pl, results):
    causes = pl.concat(
        [result.cause_table.with_columns(pl.lit(result.policy).alias("policy")) for result in results]
    ).with_columns(pl.format("{} <- {}", "function", "caller").alias("cause"))
    causes.select("policy", "cause", "access", "kind", "allocated_by", "exits")
    return (causes,)


@app.cell
def _(alt, causes, pl):
    frequent = causes.filter(pl.col("exits") > pl.col("exits").sum() / 100)
    alt.Chart(frequent, title="Exits by cause").mark_bar().encode(
        x=alt.X("sum(exits)", title="exits"),
        y=alt.Y("policy", sort=None, title=None),
        color=alt.Color("cause", legend=alt.Legend(columns=1, labelLimit=400, orient="bottom")),
        tooltip=["cause", "kind", "exits"],
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## Round trip by round trip

    A `History` has each round trip and each exit as a row. The chart shows how long round trips are, and which of
    them exit.
    """)
    return


@app.cell
def _(History, denylist, pl, trace):
    history = History.of(trace, denylist)
    lengths = (
        history.trips.with_columns(
            (2 ** pl.col("instructions").clip(1).log(2).floor()).cast(pl.Int64).alias("at least"),
            pl.when(pl.col("exits") > 0).then(pl.lit("exits")).otherwise(pl.lit("stays restricted")).alias("what"),
        )
        .group_by("at least", "what")
        .len("round trips")
        .sort("at least", "what")
    )
    lengths
    return (lengths,)


@app.cell
def _(alt, lengths):
    alt.Chart(lengths, title="Round trips by length").mark_bar().encode(
        x=alt.X("at least:O", title="instructions, at least"),
        y=alt.Y("round trips"),
        color=alt.Color("what", title=None),
        xOffset="what",
        tooltip=["at least", "what", "round trips"],
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## The price

    A price is a range: the best guess, and what the figures of the processor do not exclude. The axis is
    logarithmic, as the ranges are wide.
    """)
    return


@app.cell
def _(load_cpu, pl, policies, price, trace):
    priced = price(
        trace,
        [load_cpu("skylake-6600u"), load_cpu("zen2-7452")],
        policies=policies,
        mitigations=["linux", "blanket", "asi"],
    )
    prices = pl.DataFrame(
        [
            {
                "processor": row.cpu,
                "mitigation": f"asi, {row.policy}" if row.policy else row.mitigation,
                "low": row.overhead.low,
                "best guess": row.overhead.mid,
                "high": row.overhead.high,
            }
            for row in priced.rows
        ]
    )
    prices
    return (prices,)


@app.cell
def _(alt, prices):
    ranges = alt.Chart(prices).encode(y=alt.Y("mitigation", sort=None, title=None))
    axis = alt.Axis(format="%")
    alt.layer(
        ranges.mark_rule().encode(x=alt.X("low", scale=alt.Scale(type="log"), axis=axis, title="overhead"), x2="high"),
        ranges.mark_point(filled=True, size=80).encode(
            x="best guess", tooltip=["mitigation", "low", "best guess", "high"]
        ),
    ).facet(row="processor")
    return


if __name__ == "__main__":
    app.run()
