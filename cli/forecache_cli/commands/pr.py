"""``forecache pr``: drafts of submissions to other projects: build, prove, print their numbers, store their edits."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

import forecache_patches as patches
from forecache_patches.writing import write_new

from ..console import say

app = typer.Typer(help="Drafts of submissions to other projects.", no_args_is_help=True)


class Against(str, Enum):
    """Which version of the hub."""

    pin = "pin"
    newest = "newest"
    all = "all"


Name = Annotated[str, typer.Argument(help="The draft.", metavar="HUB/SLUG")]
Drafts = Annotated[Path, typer.Option("--drafts", help="The folder of drafts.", exists=True, file_okay=False)]
Checkout = Annotated[
    Path | None, typer.Option("--checkout", help="A git checkout of the hub at the pin; else one is fetched.")
]
DRAFTS = Path("pr_drafts")


@app.command("list")
def list_drafts(drafts: Drafts = DRAFTS) -> None:
    """List the drafts."""
    for name in patches.draft_names(drafts):
        say(f"{name}: {patches.load_draft(drafts, name).title}")


@app.command()
def build(
    name: Name,
    folder: Checkout = None,
    output: Annotated[Path | None, typer.Option("--out", help="A file instead of the terminal.")] = None,
    drafts: Drafts = DRAFTS,
) -> None:
    """Write the draft for `git am`; with --checkout also make a branch of its name there."""
    draft = patches.load_draft(drafts, name)
    if folder is None:
        with TemporaryDirectory() as temporary:
            root = patches.checkout(draft.hub.upstream, Path(temporary, "checkout"), "git").root
            content = patches.build(draft, root)
    else:
        content = patches.build(draft, folder, branch=draft.slug)
    if f"\nFrom: {patches.NOBODY}\n".encode() in content:
        typer.echo(
            "git has no user.name and user.email: the commit is nobody's; after git am make it yours with git "
            "commit --amend --reset-author",
            err=True,
        )
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    write_new(output, content)
    say(f"wrote {output}; it holds lines of {draft.hub.name} and falls under its licence")
    if folder is not None:
        say(f"made the branch {draft.slug} in {folder}; nothing was checked out")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A draft, or a hub for all of its drafts.", metavar="HUB[/SLUG]")],
    against: Annotated[Against, typer.Option(help="Which version of the hub.")] = Against.all,
    folder: Checkout = None,
    drafts: Drafts = DRAFTS,
) -> None:
    """Apply, lint, and run the hub's tests and ours without and with the change."""
    names = [name] if "/" in name else patches.draft_names(drafts, patches.load_hub(drafts, name).name)
    failures = 0
    for one in names:
        draft = patches.load_draft(drafts, one)
        say(f"{draft.name}: {draft.title}")
        for base in patches.BASES if against is Against.all else (against.value,):
            if base == "newest" and not draft.hub.package:
                say(f"  {base}: skipped, {draft.hub.name} is not on the Python index", style="yellow")
                continue
            proof = patches.prove(draft, base, folder)
            for fact in proof.facts:
                say(f"  {base}: ok: {fact}")
            for remark in proof.remarks:
                say(f"  {base}: look: {remark}", style="yellow")
            for failure in proof.failures:
                say(f"  {base}: FAILED: {failure}", style="red")
            failures += len(proof.failures)
    if failures:
        raise patches.PatchError(f"{failures} of the checks failed; they are named above")


@app.command()
def numbers(
    name: Name,
    against: Annotated[Against, typer.Option(help="Which version of the hub.")] = Against.pin,
    folder: Checkout = None,
    drafts: Drafts = DRAFTS,
) -> None:
    """Print the numbers of its PR.md anew, without and with the change."""
    draft = patches.load_draft(drafts, name)
    for base in patches.BASES if against is Against.all else (against.value,):
        say(patches.numbers(draft, base, folder).rstrip())


@app.command()
def store(
    name: Name,
    folder: Annotated[Path, typer.Option("--checkout", help="An edited git checkout of the hub at the pin.")],
    drafts: Drafts = DRAFTS,
) -> None:
    """(For developers) Store what was edited in a checkout as change/ and tests/ of the draft, for pin and newest."""
    hub, _, slug = name.partition("/")
    for file in patches.store(patches.load_hub(drafts, hub), folder, drafts / hub / slug):
        say(f"wrote {file}")
