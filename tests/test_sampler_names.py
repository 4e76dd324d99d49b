"""The names people know, and schedulers from a model's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from rawdiff.errors import UsageError, WeightsError
from rawdiff.sampler import SamplerTable, make_sampler
from rawdiff.sampler.drive import hush
from rawdiff.weights.schedulers import (
    SCHEDULER_CLASSES,
    known_names,
    scheduler_from_folder,
    scheduler_from_name,
)

CONFIG: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
"""As in the folders of Stable Diffusion 1."""


@pytest.mark.parametrize("name", known_names())
def test_every_name_makes_a_table_with_the_models_betas(name: str) -> None:
    for prediction in ("epsilon", "v_prediction"):
        scheduler = scheduler_from_name(name, CONFIG | {"prediction_type": prediction})
        made = make_sampler(scheduler, steps=6)
        assert isinstance(made, SamplerTable), made.why
        assert made.prediction_type == prediction
        assert scheduler.config.beta_end == 0.012
        flags = {
            word for word in ("karras", "exponential", "beta") if scheduler.config.get(f"use_{word}_sigmas")
        }
        assert flags == {word for word in ("karras", "exponential", "beta") if name.endswith(word)}


MULTI = "DPMSolverMultistepScheduler"


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("DDIM", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
        ("plms", "PNDMScheduler", {"skip_prk_steps": True}),
        ("Euler a", "EulerAncestralDiscreteScheduler", {}),
        ("k_euler_ancestral", "EulerAncestralDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", "EulerDiscreteScheduler", {}),
        ("K_DPM_2", "KDPM2DiscreteScheduler", {}),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
        ("LMS  karras", "LMSDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M Karras", MULTI, {"solver_order": 2, "use_karras_sigmas": True}),
        ("dpmpp_2m_sde_gpu", MULTI, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
        ("DPM++ 3M SDE Exponential", MULTI, {"solver_order": 3, "use_exponential_sigmas": True}),
        ("dpmpp_sde", "DPMSolverSDEScheduler", {}),
        ("DPM++ 2S", "DPMSolverSinglestepScheduler", {"solver_order": 2}),
        ("uni_pc_bh2", "UniPCMultistepScheduler", {"solver_type": "bh2"}),
        ("UniPC beta", "UniPCMultistepScheduler", {"use_beta_sigmas": True}),
        ("sa_solver", "SASolverScheduler", {}),
        ("DPMSolverMultistep", MULTI, {"algorithm_type": "dpmsolver++"}),
    ],
)
def test_spellings(name: str, kind: str, settings: dict[str, Any]) -> None:
    scheduler = scheduler_from_name(name, CONFIG)
    assert type(scheduler).__name__ == kind
    for key, value in settings.items():
        assert scheduler.config[key] == value


@pytest.mark.parametrize("kind", sorted(SCHEDULER_CLASSES - {"EDMEulerScheduler"}))
def test_a_change_of_class_is_the_one_diffusers_makes(kind: str) -> None:
    """The levels of `from_config`, from a config whose missing entries were defaulted by another class."""
    with hush():
        base = diffusers.PNDMScheduler.from_config(CONFIG)
        theirs = getattr(diffusers, kind).from_config(base.config)
    ours = scheduler_from_name("pndm" if kind == "PNDMScheduler" else kind, base.config)
    assert type(ours) is type(theirs)
    with hush():
        ours.set_timesteps(9)
        theirs.set_timesteps(9)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    if hasattr(ours, "sigmas"):
        assert torch.equal(ours.sigmas, theirs.sigmas)


def test_a_samplers_own_settings_are_not_carried_over() -> None:
    base = CONFIG | {"_class_name": MULTI, "algorithm_type": "sde-dpmsolver++"}
    base |= {"euler_at_final": True, "solver_order": 3, "use_karras_sigmas": True}
    scheduler = scheduler_from_name("dpm++ 2m exponential", base)
    assert scheduler.config.algorithm_type == "dpmsolver++"
    assert scheduler.config.solver_order == 2
    assert not scheduler.config.use_karras_sigmas
    assert scheduler.config.use_exponential_sigmas
    assert scheduler.config.euler_at_final
    assert scheduler_from_name("unipc", base).config.solver_order == 2


def test_latents_are_never_clipped() -> None:
    for name in ("ddim", "ddpm", "lcm", "heun"):
        config = {k: v for k, v in CONFIG.items() if k != "clip_sample"}
        assert scheduler_from_name(name, config).config.clip_sample is False
        assert scheduler_from_name(name, config | {"clip_sample": True}).config.clip_sample is False


def test_zero_terminal_snr_where_the_class_has_it() -> None:
    base = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    base["timestep_spacing"] = "trailing"
    for name in ("ddim", "euler", "euler a", "dpm++ 2m", "unipc", "lcm"):
        assert scheduler_from_name(name, base).alphas_cumprod[-1] < 1e-6
    with pytest.raises(UsageError, match="zero terminal SNR, which HeunDiscreteScheduler does not have"):
        scheduler_from_name("heun", base)


def test_settings_beside_the_name() -> None:
    scheduler = scheduler_from_name("euler", CONFIG, settings={"timestep_spacing": "trailing"})
    assert scheduler.config.timestep_spacing == "trailing"
    with pytest.raises(UsageError, match="EulerDiscreteScheduler has no setting 'solver_order'"):
        scheduler_from_name("euler", CONFIG, settings={"solver_order": 3})
    with pytest.raises(UsageError, match="refuses"):
        scheduler_from_name("euler karras", CONFIG, settings={"use_beta_sigmas": True})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eulr", "did you mean euler, "),
        ("dpm++ 2m carras", "did you mean dpm++ 2m karras, "),
        ("dpm++ 2s a", "did you mean dpm++ 2s, "),
        ("", "known are ddim, ddpm, "),
        ("\x00" * 500, "known are ddim"),
        ("x" * 100_000, "known are ddim"),
        ("ddim karras", "DDIMScheduler has no karras spacing"),
        ("euler a exponential", "EulerAncestralDiscreteScheduler has no exponential spacing"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        scheduler_from_name(name, CONFIG)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "module"),
    [("lms", "scipy"), ("dpm++ 2m beta", "scipy"), ("dpm++ sde karras", "torchsde")],
)
def test_a_missing_module_is_one_clear_line(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as error:
        scheduler_from_name(name, CONFIG)
    expected = f"sampler {name!r} needs {module}, which is not installed: pip install 'rawdiff[samplers]'"
    assert str(error.value) == expected
    assert scheduler_from_name("dpm++ 2m karras", CONFIG)


def write(folder: Path, text: str) -> Path:
    (folder / "scheduler_config.json").write_text(text)
    return folder


@pytest.mark.parametrize("kind", sorted(SCHEDULER_CLASSES))
def test_from_a_folder_as_diffusers_loads_it(kind: str, tmp_path: Path) -> None:
    with hush():
        theirs = getattr(diffusers, kind)()
        theirs.save_pretrained(tmp_path)
    ours = scheduler_from_folder(tmp_path)
    assert type(ours) is type(theirs)
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    assert type(scheduler_from_folder(tmp_path / "scheduler_config.json")) is type(theirs)


def test_from_a_folder_with_keys_of_other_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = scheduler_from_folder(write(tmp_path, json.dumps(CONFIG)))
    assert isinstance(scheduler, diffusers.PNDMScheduler)
    assert scheduler.config.steps_offset == 1
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no readable JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "no readable JSON"),
        ("{}", "scheduler class None is not one of DDIMScheduler, "),
        ('{"_class_name": "os.system"}', "scheduler class 'os.system' is not one of"),
        ('{"_class_name": ["DDIMScheduler"]}', "is not one of"),
        ('{"_class_name": "FlowMatchEulerDiscreteScheduler"}', "is not one of"),
        ('{"_class_name": "StableDiffusionPipeline"}', "is not one of"),
        ('{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000000000000}', "num_train"),
        ('{"_class_name": "DDIMScheduler", "num_train_timesteps": "1000"}', "num_train_timesteps"),
        (
            '{"_class_name": "UniPCMultistepScheduler", "solver_order": 1000000000}',
            "'solver_order' is 1000000000, expected -1048576 to 1048576",
        ),
        (
            '{"_class_name": "DDIMScheduler", "beta_end": NaN}',
            "beta_end nan: expected a number",
        ),
        ('{"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}', "DDIMScheduler refuses its config"),
        ('{"_class_name": "DDIMScheduler", "beta_schedule": 7}', "DDIMScheduler refuses its config"),
        ('{"_class_name": "DDIMScheduler", "prediction_type": "x"}', "prediction_type 'x': expected one of"),
        ('{"_class_name": "DDIMScheduler", "timestep_spacing": 3}', "timestep_spacing 3: expected one of"),
        ('{"_class_name": "DDIMScheduler", "trained_betas": [0.1]}', "trained_betas: expected 1000 numbers"),
    ],
)
def test_configs_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        scheduler_from_folder(write(tmp_path, text))
    assert words in str(error.value)
    assert str(tmp_path / "scheduler_config.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 4


def test_a_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not found"):
        scheduler_from_folder(tmp_path)
    (tmp_path / "scheduler_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="no readable JSON"):
        scheduler_from_folder(tmp_path)
    (tmp_path / "scheduler_config.json").unlink()
    (tmp_path / "scheduler_config.json").mkdir()
    with pytest.raises(WeightsError):
        scheduler_from_folder(tmp_path)
