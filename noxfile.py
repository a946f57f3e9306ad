"""Every job of the project. ``nox -l`` is the table of contents; ``nox -s NAME -- ARGUMENTS`` passes arguments on.

The first word of a job's line there is its group: start (what a newcomer wants), generator, figures, training, hub or
check. Generators are registered in lab/forecache_lab/generators/registry.py.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

# by its path: no package of ours is installed where nox runs
GENERATORS = runpy.run_path(str(Path(__file__).with_name("lab") / "forecache_lab/generators/registry.py"))["GENERATORS"]

# Session of a hub -> its folders in pr_drafts; formatter and linters as its own configuration pins them, and the
# requirements of its tests.
HUBS = {
    "cachedit": (("cache-dit",), ("yapf==0.40.2", "flake8==7.1.1", "pydocstyle==6.1.1", "docformatter==1.7.7")),
    "diffusers": (("diffusers",), ("ruff==0.9.10", "parameterized", "httpx")),
    "cache4diffusion": (("cache4diffusion",), ()),
    "generators": (("hunyuan21", "hunyuan2", "trellis", "trellis2", "fastsam3d"), ()),
}

# The ComfyUI that the nodes' tests run on, 0.3.64, and what it imports of packages that the tests do not need anyway;
# torchvision, which the tests' own stand in for, would replace torch.
COMFYUI = ("https://github.com/comfyanonymous/ComfyUI", "a125cd84b054a57729b5eecab930ca9408719832")
COMFYUI_NEEDS = ("torchsde", "einops", "sentencepiece", "aiohttp", "pyyaml", "psutil", "av", "pydantic")

# The version of constraints.txt is that of a CUDA build on the public index and of a CPU build elsewhere.
CUDA = (
    "import sys, torch; "
    "sys.exit(None if torch.cuda.is_available() else f'torch {torch.__version__} finds no CUDA device: install a build "
    "for this driver (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL), or run python -m benchmarks.gpu with the torch you have')"
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
QUIET = {"PYTHONWARNINGS": "ignore::FutureWarning"}


# --- what sessions share ----------------------------------------------------------------------------------------------
def install(session: nox.Session, extras: str) -> None:
    """This checkout with ``extras``, at the versions of constraints.txt."""
    # unconstrained, the index offers torch with several GB of CUDA libraries; the pin admits a CPU build on disk
    session.install("-c", "constraints.txt", f".[{extras}]")


def prepared(session: nox.Session, source: str, *upstreams: str, only_git: bool = False) -> Path:
    """The first of ``upstreams`` whose files can be fetched, at its pin, patched; made once and kept in nox's cache.

    ``only_git``: where git cannot reach the repository, no wheel has its files either, and the session is skipped.
    """
    for upstream in upstreams:
        checkout = Path(session.cache_dir, "upstreams", upstream)
        checkout.parent.mkdir(parents=True, exist_ok=True)
        try:
            session.run("forecache", "upstream", "checkout", upstream, str(checkout), "--source", source)
        except nox.command.CommandFailed:
            if only_git:
                session.skip("repository not reachable (the reason stands above), and no wheel has its files")
            if upstream == upstreams[-1]:
                raise
            session.warn(
                f"{upstream} cannot be had from source {source} (the reason stands above): trying the next pin"
            )
            continue
        session.run("forecache", "patch", "apply", upstream, str(checkout))
        return checkout
    raise ValueError("upstreams must name at least one")


def checkouts_for_tests(session: nox.Session, without: str) -> dict[str, str]:
    """Environment with FORECACHE_HUNYUAN21 and FORECACHE_TRELLIS, the patched checkouts that could be fetched.

    ``without``: the warning where one could not be; it may name the ``{upstream}``.
    """
    environment = {}
    for upstream in ("hunyuan21", "trellis"):
        try:
            environment[f"FORECACHE_{upstream.upper()}"] = str(prepared(session, "auto", upstream).resolve())
        except nox.command.CommandFailed:
            session.warn(without.format(upstream=upstream))
    return environment


def on_hunyuan21(session: nox.Session, extras: str, module: str, *defaults: str) -> None:
    """A module of benchmarks on the patched checkout; an option on the command line takes the place of its default."""
    install(session, extras)
    checkout = prepared(session, "auto", "hunyuan21")
    given = () if set(defaults[:1]) & set(session.posargs) else defaults
    session.run("python", "-m", f"benchmarks.{module}", str(checkout), *given, *session.posargs)


def fetched(
    session: nox.Session, parser: argparse.ArgumentParser, generator: str | None = None
) -> tuple[argparse.Namespace, Path, list[str]]:
    """A generator's packages and its patched checkout: -- [--source git|wheel|auto] [--pin ...] [--weights NAME] ...

    Returns the arguments that ``parser`` knows, the checkout, and the arguments that are left.
    """
    parser.add_argument("--source", default="auto", choices=("git", "wheel", "auto"))
    parser.add_argument("--pin", help="default: the first that can be fetched")
    own, rest = parser.parse_known_args(session.posargs)
    row = GENERATORS[own.generator if generator is None else generator]
    if own.pin is not None and own.pin not in row.pins:
        parser.error(f"--pin of {row.name} must be one of {', '.join(row.pins)}, got {own.pin}")
    real = "--weights" in rest
    if real and shutil.which("nvidia-smi") is None:
        session.log("no NVIDIA driver here: the packages that only the real weights need are not installed")
        real = False
    install(session, row.weights_extra if real and row.weights_extra else row.name)
    pins = [row.pins[own.pin]] if own.pin else row.pins.values()
    checkout = prepared(session, own.source, *pins, only_git=not row.wheel)
    session.run("forecache", "upstream", "status", str(checkout))
    return own, checkout, rest


def register_generator(generator: str, basis: str) -> None:
    """The session GENERATOR_BASIS: -- [--source git|wheel|auto] [--pin ...] [--weights NAME --image FILE] ..."""

    def measure(session: nox.Session) -> None:
        _, checkout, rest = fetched(session, argparse.ArgumentParser(), generator)
        out = Path("out", f"{generator}_{basis}")
        command = ("-m", "forecache_lab.session", generator, str(checkout), "--basis", basis, "--out", str(out))
        session.run("python", *command, *rest, env=QUIET)

    group = "start" if (generator, basis) == FIRST else "generator"
    title = GENERATORS[generator].title
    measure.__doc__ = (
        f"{group}: fetch and patch {title}, measure {basis} beside the uncached run: tables, meshes, page."
    )
    nox.session(name=f"{generator}_{basis}")(measure)


FIRST = ("hunyuan21", "dmd")


# --- start ------------------------------------------------------------------------------------------------------------
@nox.session
def demo(session: nox.Session) -> None:
    """start: a flow with a known velocity, no upstream and no weights; a table and out/demo/demo.png in seconds."""
    install(session, "report")
    session.run("forecache", "demo", "--out", str(Path("out", "demo")))


@nox.session
def tests(session: nox.Session) -> None:
    """start: the test suite, against the installed wheel. -- -m "not gpu": also the tests that take minutes."""
    install(session, "test")
    # a file's tests stay together: they share a checkout and a pipeline. A lost worker ends all: xdist would wait on
    how = ("-n2", "--dist=loadfile", "--max-worker-restart=0")
    session.run("pytest", *how, *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """start: ruff and mypy --strict."""
    install(session, "hunyuan21")
    session.install("-c", "constraints.txt", "ruff", "mypy")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    packages = (
        "forecache", "forecache_patches", "forecache_adapters", "forecache_lab", "forecache_cli", "docs.examples",
        "forecache_docs", "benchmarks",
    )  # fmt: skip
    session.run("mypy", *(word for package in packages for word in ("-p", package)))


register_generator(*FIRST)


@nox.session
def bench(session: nox.Session) -> None:
    """start: a folder of pictures, every method beside the uncached run. -- GENERATOR --images DIR --method SPEC ..."""
    parser = argparse.ArgumentParser()
    parser.add_argument("generator", nargs="?", default="hunyuan21", choices=tuple(GENERATORS))
    parser.add_argument("--images", help="default: pictures of solids, which the reference networks know")
    parser.add_argument("--out")
    own, checkout, rest = fetched(session, parser)
    out = own.out or str(Path("out", f"bench_{own.generator}"))
    if own.images is None:
        own.images = str(Path("out", "bench_images"))
        session.run("forecache", "bench", "--sample-images", own.images)
    command = ("bench", own.generator, "--images", own.images, "--out", out, "--checkout", str(checkout))
    session.run("forecache", *command, *rest, env=QUIET)


@nox.session
def docs(session: nox.Session) -> None:
    """start: the documentation as a site, warnings as errors: out/docs/index.html. -- ARGUMENTS go to sphinx-build."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "docs", str(Path("out", "docs")), *session.posargs)


# --- generators -------------------------------------------------------------------------------------------------------
for _row in GENERATORS.values():
    for _basis in _row.bases:
        if (_row.name, _basis) != FIRST:
            register_generator(_row.name, _basis)


# --- figures ----------------------------------------------------------------------------------------------------------
@nox.session
def cost(session: nox.Session) -> None:
    """figures: cost of a fit, a forecast and the state beside hicache-pp 1.3.0. -- --quick for small sizes only."""
    install(session, "test")
    session.run("python", "-m", "benchmarks.cost", *session.posargs, env=ONE_THREAD)


@nox.session
def zoo(session: nox.Session) -> None:
    """figures: the default beside published rules and solvers, flows x grids x budgets. -- --half develop|report ..."""
    install(session, "frontier,trellis")
    environment = dict(ONE_THREAD)
    if not {"--quick", "--help"} & set(session.posargs):
        without = "the reference network of {upstream} is left out (the reason stands above)"
        environment |= checkouts_for_tests(session, without)
    session.run("python", "-m", "benchmarks.zoo", *session.posargs, env=environment)


@nox.session
def frontier(session: nox.Session) -> None:
    """figures: drift and error against network calls: solvers, published caches, ours. -- --settings NAME ..."""
    on_hunyuan21(session, "frontier", "frontier", "--out", str(Path("out", "frontier")))


@nox.session
def plans_hunyuan21(session: nox.Session) -> None:
    """figures: calibrate plans for the reference network, drift against calls. -- --calls 9 11 15 --out DIR"""
    on_hunyuan21(session, "hunyuan21", "studies.plans", "--out", str(Path("out", "plans_hunyuan21")))


@nox.session
def dit_imagenet(session: nox.Session) -> None:
    """figures: FID drift of every basis around a tiny random DiT, plans. -- run --model facebook/DiT-XL-2-256 ..."""
    install(session, "dit-imagenet")
    command = ("python", "-m", "benchmarks.dit_imagenet")
    if session.posargs:
        session.run(*command, *session.posargs)
        return
    out, calls = Path("out", "dit_imagenet"), (6, 8, 10)
    budgets = [argument for k in calls for argument in ("--calls", str(k))]
    session.run(*command, "plan", "--out", str(out / "plans"), "--steps", "20", *budgets)
    plans = [argument for k in calls for argument in ("--plan", str(out / "plans" / f"plan-{k}.json"))]
    session.run(*command, "run", "--out", str(out / "toy"), "--steps", "20", *budgets, *plans)


@nox.session
def gpu(session: nox.Session) -> None:
    """figures: on a CUDA device, for benchmarks/results, then tests of their targets. -- --case NAME --repeats N"""
    if shutil.which("nvidia-smi") is None and shutil.which("rocm-smi") is None:
        session.skip("no CUDA device: neither nvidia-smi nor rocm-smi is there")
    install(session, "hunyuan21,trellis,diffusers")
    session.install("-c", "constraints.txt", "pytest")
    session.run("python", "-c", CUDA)
    without = "{upstream} was left out (the reason stands above): a plain transformer stands in for it"
    environment = checkouts_for_tests(session, without)
    command = ("python", "-m", "benchmarks.gpu", "--device", "cuda", "--out", str(Path("benchmarks", "results")))
    session.run(*command, *session.posargs, env=environment)
    folder = str(Path("tests", "gpu"))  # tests/conftest.py needs the packages of the other tests
    session.run("pytest", "-m", "gpu", "--confcutdir", folder, folder, env=environment)


# --- training ---------------------------------------------------------------------------------------------------------
@nox.session
def train_hunyuan21(session: nox.Session) -> None:
    """training: the reference network (an hour on one core). -- --out FILE --iterations N --resume FILE"""
    on_hunyuan21(session, "hunyuan21", "training.hunyuan21")


@nox.session
def train_trellis(session: nox.Session) -> None:
    """training: both reference networks, the second with the conditioner of the first. -- --out DIR ..."""
    install(session, "trellis")
    checkout = prepared(session, "auto", "trellis")
    for stage in ("sparse_structure", "slat"):
        session.run("python", "-m", "benchmarks.training.trellis", str(checkout), stage, *session.posargs)


@nox.session
def train_sam3d(session: nox.Session) -> None:
    """training: the reference network of shape and pose (half an hour on one core). -- --out FILE --iterations N ..."""
    install(session, "sam3d")
    checkout = prepared(session, "auto", "sam3d")
    session.run("python", "-m", "benchmarks.training.sam3d", str(checkout), *session.posargs)


# --- hubs -------------------------------------------------------------------------------------------------------------
def register_hub(name: str, hubs: tuple[str, ...], tools: tuple[str, ...]) -> None:
    """The session pr_NAME: -- [--against pin|newest]"""

    def prove(session: nox.Session) -> None:
        install(session, "test")
        if tools:
            session.install(*tools)
        reached = False
        for hub in hubs:
            checkout = Path(session.cache_dir, "hubs", hub)
            fetch = ("forecache", "upstream", "checkout", hub, str(checkout), "--source", "git")
            lock = () if hub in HUBS["generators"][0] else ("--lock", str(Path("pr_drafts", "upstreams.toml")))
            try:
                session.run(*fetch, *lock)
            except nox.command.CommandFailed:
                session.warn(f"{hub} was left out: repository not reachable (the reason stands above)")
                continue
            reached = True
            check = ("forecache", "pr", "check", hub, "--checkout", str(checkout))
            session.run(*check, *session.posargs, env=ONE_THREAD)
        if not reached:
            session.skip("no repository reachable (the reasons stand above)")

    prove.__doc__ = f"hub: drafts for {', '.join(hubs)}: apply, lint, its tests and ours without and with the change."
    nox.session(name=f"pr_{name}")(prove)


for _name, (_hubs, _tools) in HUBS.items():
    register_hub(_name, _hubs, _tools)


# --- checks -----------------------------------------------------------------------------------------------------------
@nox.session
def comfyui(session: nox.Session) -> None:
    """check: the nodes' tests on ComfyUI itself, at its pin: -- [CHECKOUT of it that is there already]"""
    install(session, "test")
    session.install("-c", "constraints.txt", *COMFYUI_NEEDS)
    session.install("--no-deps", "spandrel")  # which asks for torchvision
    url, commit = COMFYUI
    checkout = Path(*session.posargs) if session.posargs else Path(session.cache_dir, "comfyui", commit)
    if not (checkout / "comfy").is_dir():
        git = ("git", "-C", str(checkout))
        # what git exports in a hook, such as GIT_DIR, would turn these calls to the repository of that hook
        kept = ("GIT_SSL_", "GIT_SSH", "GIT_PROXY_", "GIT_CONFIG_GLOBAL")
        own = {name: None for name in os.environ if name.startswith("GIT_") and not name.startswith(kept)}
        session.run("git", "init", "--quiet", str(checkout), external=True, env=own)
        try:
            session.run(*git, "fetch", "--quiet", "--depth", "1", url, commit, external=True, env=own)
        except nox.command.CommandFailed:
            session.skip("ComfyUI's repository is not reachable (the reason stands above)")
        session.run(*git, "checkout", "--quiet", commit, external=True, env=own)
    tests = (
        str(Path("tests", "upstream", name))
        for name in ("test_comfyui.py", "test_comfyui_harm.py", "test_comfyui_itself.py")
    )
    session.run("pytest", *tests, env={**ONE_THREAD, "FORECACHE_COMFYUI": str(checkout.resolve())})


@nox.session
def core_alone(session: nox.Session) -> None:
    """check: the core imports and forecasts with torch and numpy alone."""
    session.install("-c", "constraints.txt", ".")
    session.run("python", "tests/core_alone.py")
