"""Every file of conf/ and every documented command line composes; what the schema doesn't have is refused, and how."""

import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product, takewhile
from pathlib import Path
from string import Template

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from ring_ray import compose, launch
from ring_ray.compose import CONF
from ring_ray.config import ConfigError, RunConfig
from ring_ray.config.keys import sections

REWARD_MODEL = ["reward.model.path=DIR", "cluster.reward_model.gpus=0.5"]
HALF_GPUS = ["cluster.policy.gpus=0.5", "cluster.rollout.gpus=0.5"]
OWN_GPUS = [f"cluster.{role}.gpus=1" for role in ("policy", "rollout", "reference")]
FILES = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.glob("*/**/*.yaml"))
GROUPS = sorted({file.split("/")[0] for file in FILES} - {"hydra"})
PAGES = {page.name: page.read_text() for page in (CONF.parent / "README.md", *CONF.parent.glob("docs/*.md"))}
HELP = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))["hydra"]["help"]["template"]
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"jobs/(train\.py|memory\.py|submit\.sh|slurm\.sh) ")  # those that take overrides


def composed(*overrides: str) -> RunConfig:
    return compose.composed([*overrides])


def names(group: str) -> list[str]:
    return sorted(path.stem for path in Path(CONF, group).glob("*.yaml"))


NEEDED = {("jsonl",): ["data.path=problems.jsonl"], ("ring_lite", "disaggregated"): OWN_GPUS}


def needed(*chosen: str) -> list[str]:
    return [override for files, overrides in NEEDED.items() if {*files} <= {*chosen} for override in overrides]


@pytest.mark.parametrize("file", FILES)
def test_every_file_composes_alone(file: str) -> None:
    group, _, name = file.rpartition("/")
    assert composed(f"{group}={name}", *needed(name))


@pytest.mark.parametrize("chosen", list(product(*map(names, GROUPS))), ids="-".join)
def test_every_combination_composes(chosen: tuple[str, ...]) -> None:
    config = composed(*(f"{group}={name}" for group, name in zip(GROUPS, chosen, strict=True)), *needed(*chosen))
    assert {config.algo.name, config.data.source, config.cluster.name} <= {*chosen}
    for key, value in OmegaConf.load(CONF / "algo" / f"{config.algo.name}.yaml").items():
        assert getattr(config.algo, key) == pytest.approx(value), f"the experiment overrides algo.{key}"


@pytest.mark.parametrize("experiment", names("experiment"))
def test_an_experiment_only_says_what_differs(experiment: str) -> None:
    said = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    chosen = [(group.split("/")[-1], name) for line in said.pop("defaults", []) for group, name in line.items()]
    overrides = [f"{group}={name}" for group, name in chosen] + needed(*(name for _, name in chosen))
    keys = [key for section in sections(composed("~experiment", *overrides)) for key in section.keys]
    assert not [key.name for key in keys if OmegaConf.select(said, key.name, default="unsaid") == key.value]


def test_weights_are_by_domains_that_the_schema_does_not_know() -> None:
    assert composed("data.weights={math: 2, code/python: 1}").data.weights == {"math": 2.0, "code/python": 1.0}
    assert composed("experiment=mixture", "data.weights.games=3").data.weights["games"] == 3.0
    with pytest.raises(ConfigError, match=r"data\.weights\.math: .*'many'"):
        composed("data.weights.math=many")


def test_ring_lite_has_the_numbers_of_the_paper() -> None:
    config = composed("experiment=ring_lite")
    paper = {
        "token_budget": 256 * 409_600,
        "group_size": 16,
        "groups_per_step": 512,
        "clip_range": 0.2,
        "kl_coefficient": 1e-3,
        "entropy_coefficient": 5e-4,
        "balance_coefficient": 1e-5,
        "z_coefficient": 1e-7,
    }
    assert paper.items() <= asdict(config.algo).items()
    assert (config.train.learning_rate, config.rollout.temperature) == (3e-6, 1.0)
    assert config.rollout.max_prompt_tokens + config.rollout.max_response_tokens == 24_576


def command_lines(page: str) -> Iterator[str]:
    """What follows a command that takes overrides, in a page's code; a line with an ellipsis is a pattern for one."""
    for block, inline in CODE.findall(page):
        variables = dict(re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE))
        for line in block.replace("\\\n", " ").splitlines() or [inline.replace("\n", " ")]:
            command = COMMAND.search(line)
            if command and "..." not in line:
                yield " ".join(Template(line[command.end() :]).safe_substitute(variables).partition(" #")[0].split())


def parsed(command_line: str) -> Namespace:
    parser = get_args_parser()
    for option in ("--gpu-gib", "--address", "--id"):  # of jobs/memory.py and jobs/submit.sh
        parser.add_argument(option)
    words = shlex.shlex(command_line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return parser.parse_args([*takewhile(lambda word: not {*word} <= {*"|&;<>()"}, words)])


def values(override: Override) -> list[str]:
    """The overrides of single runs that a sweep makes of one."""
    if not override.is_sweep_override():
        return [override.input_line]
    swept = override.value()
    ends = (swept.start, swept.end) if override.is_interval_sweep() else override.sweep_string_iterator()
    return [f"{override.get_key_element()}={value}" for value in ends]


DOCUMENTED = [
    pytest.param(line, id=f"{name}: {line}")
    for name, page in sorted({**PAGES, "--help": f"```\n{HELP}```"}.items())
    for line in dict.fromkeys(command_lines(page))
]


@pytest.mark.parametrize("command_line", DOCUMENTED)
def test_every_documented_command_line_composes(command_line: str) -> None:
    arguments = parsed(command_line)
    overrides = arguments.overrides
    swept = [values(override) for override in OverridesParser.create().parse_overrides(overrides)]
    for run in product(*swept) if arguments.multirun else [overrides]:
        composed(*run)


def test_the_readme_documents_both_commands_and_a_sweep() -> None:
    assert {"--help", "-m seed=0,1,2", "experiment=ring_lite"} <= {*command_lines(PAGES["README.md"])}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo.token_budgt=1", "algo.token_budgt: no such key; did you mean algo.token_budget?"),
        ("+algo.token_budgt=1", "algo.token_budgt: no such key; did you mean algo.token_budget?"),
        ("token_budget=1", "token_budget: no such key; did you mean algo.token_budget?"),
        ("cluser=colocated", "cluser: no such key; did you mean cluster"),
        ("algo=c3p0", "algo=c3p0: must be one of c3po, cispo, dapo, grpo, gspo; did you mean c3po?"),
        ("algo.token_budget=abc", "algo.token_budget: Value 'abc' of type 'str' could not be converted to Integer"),
        ("algo.token_budget=1,2", "add --multirun"),
        ("seed=???", "seed: Missing mandatory value"),
        ("train.steps", "train.steps"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(override)
    assert message in str(refused.value)
    assert "Config search path" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "algo: {token_budgt: 1}",
            "experiment/mine.yaml: algo.token_budgt: no such key; did you mean algo.token_budget?",
        ),
        ("algo: {token_budget: abc}", "experiment/mine.yaml: algo.token_budget: Value 'abc'"),
        ("defaults: [override /cluster: colocatd]", "cluster=colocatd: must be one of colocated, disaggregated, local"),
        ("algo: {token_budget: 1", "experiment/mine.yaml:3: not YAML: expected ',' or '}'"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        composed("experiment=mine", f"hydra.searchpath=[file://{tmp_path}]")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which main sets: restored afterwards
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    compose.main()


def test_the_help_shows_the_values_of_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_main(monkeypatch, "experiment=ring_lite", "seed=7", "--help")
    text = capsys.readouterr().out
    for line in ("experiment=ring_lite *", "cluster=colocated *", "seed=7", "algo.token_budget=104857600"):
        assert f"\n  {line}  " in text


def test_the_config_is_shown_without_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_main(monkeypatch, "algo=grpo", "seed=7", "--cfg", "job")
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.algo.selection, shown.seed, {*shown}) == ("groups", 7, {*asdict(RunConfig())})


@pytest.mark.parametrize("more", [[], ["--help"], ["-m"]])
def test_a_mistake_ends_the_command_with_one_line(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, "algo.token_budgt=1", *more)
    assert capsys.readouterr().err == "error: algo.token_budgt: no such key; did you mean algo.token_budget?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algo=null"], "algo=null: Config group override must be a string or a list. Got NoneType"),
        (["-m", "algo=null"], "-m algo=null: Config group override must be a string or a list. Got NoneType"),
        (["a b"], "a b: LexerNoViableAltException: a b"),
        (["algo=[1]"], "algo=[1]: argument of type 'int' is not iterable"),
    ],
)
def test_what_hydra_stumbles_over_ends_the_command_with_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert "Traceback" not in error


def test_a_fault_of_the_run_is_not_taken_for_a_mistake_in_its_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(config: RunConfig) -> float:
        raise LookupError(config.run_dir)

    monkeypatch.setattr(launch, "launch", fail)
    with pytest.raises(LookupError, match=str(tmp_path)):
        run_main(monkeypatch, f"hydra.run.dir={tmp_path}")


@pytest.mark.parametrize(
    "override",
    [
        "algo.token_budget=0",
        "algo.group_size=1",
        "algo.clip_range=1.5",
        "algo.cutoff=never",
        "algo.kl_coefficient=-1",
        "data.eval_fraction=1.0",
        "model.dtype=int8",
        "rollout.temperature=0.0",
        "train.steps=0",
        "train.zero_stage=4",
        "cluster.buffer.workers=2",
        "cluster.policy.workers=0",
        "cluster.reward.cpus=0.0",
        "cluster.policy.gpus=0.5",
        "rollout.top_p=0.9",
        "rollout.max_batched_tokens=8",
        "sft.learning_rate=-1.0",
        "tracking.wandb=maybe",
        "seed=-1",
    ],
)
def test_a_bad_value_is_refused_by_key_and_value(override: str) -> None:
    key, value = override.split("=")
    with pytest.raises(ConfigError) as refused:
        composed(override)
    assert key.rpartition(".")[2] in str(refused.value)
    assert value in str(refused.value)


def test_bfloat16_needs_zero() -> None:
    with pytest.raises(ConfigError, match=r"train\.zero_stage=0"):
        composed("model.dtype=bfloat16", "train.zero_stage=0")


def test_a_share_of_a_gpu_for_each_engine_means_cuda() -> None:
    shares = [f"cluster.{role}.gpus=0.3" for role in ("policy", "rollout", "reference")]
    assert composed(*shares).cluster.device == "cuda"
    assert composed().cluster.device == "cpu"
    with pytest.raises(ConfigError, match=r"cluster\.reference\.gpus=0\.0"):
        composed("algo.kl_coefficient=0.1", *shares[:2])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["cluster=disaggregated", "cluster.policy.gpus=0.5", "cluster.rollout.gpus=1"], "cluster.policy.gpus=0.5"),
        (["cluster=disaggregated", "rollout.tensor_parallel=2", *OWN_GPUS], "cluster.rollout.gpus=1"),
        (["cluster=disaggregated", *OWN_GPUS[:1], "cluster.rollout.gpus=2"], "cluster.rollout.gpus=2"),
        (["cluster=disaggregated", *OWN_GPUS, *REWARD_MODEL], "cluster.reward_model.gpus=0.5"),
        (["cluster=colocated", *HALF_GPUS, *REWARD_MODEL], "cluster.colocate"),
        (["cluster=colocated", *OWN_GPUS], "cluster.colocate"),
        (["cluster=colocated", "cluster.policy.gpus=0.5", "cluster.rollout.gpus=0.5"], "sync.transport"),
        (["cluster=colocated", "sync.transport=ipc", "cluster.rollout.workers=2"], "sync.transport"),
        (["cluster=disaggregated", "sync.transport=ipc"], "sync.transport"),
        (["algo.objective=likelihood"], "algo.objective"),
        (["cluster=colocated", "cluster.overlap=true"], "cluster.take_turns"),
        (["algo.correction=icepop"], "algo.correction"),
        (["train.offload_parameters=true"], "train.offload_parameters"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], key: str) -> None:
    without_reference = ["algo.kl_coefficient=0"]
    transport = ["sync.transport=broadcast"] if overrides[-1] == "cluster.rollout.gpus=0.5" else []
    with pytest.raises(ConfigError, match=re.escape(key)):
        composed(*without_reference, *overrides, *transport)


@pytest.mark.parametrize(
    ("overrides", "transport"),
    [
        ([], "object_store"),
        (["cluster=colocated"], "ipc"),
        (["cluster=colocated", "cluster.rollout.workers=2"], "object_store"),
        (["cluster=disaggregated"], "broadcast"),
        (["cluster=disaggregated", "sync.transport=disk"], "disk"),
    ],
)
def test_auto_is_the_transport_that_fits_the_cluster(overrides: list[str], transport: str) -> None:
    assert composed(*overrides).transport == transport


def test_jsonl_without_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.path"):
        composed("data=jsonl")
