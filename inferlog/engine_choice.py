"""Which engine and model a worker gets when nothing is said, and whether they are there at all."""

import importlib.util
from dataclasses import replace

from consumers.inference.engine.options import EngineOptionError, make_engine
from consumers.inference.settings import WorkerSettings
from inferlog.model_download import MODEL_NAME, model_dir
from inferlog.problems import WrongUsage


def with_model(settings: WorkerSettings) -> WorkerSettings:
    """The settings with a model in them.

    Raises WrongUsage where an engine or model is missing, or options are wrong; vLLM's are for the
    worker to judge, as vLLM alone knows them and takes seconds to import.
    """
    if settings.engine == "scripted":
        try:
            make_engine("scripted", settings.model, settings.engine_option)
        except EngineOptionError as error:
            raise WrongUsage(str(error)) from None
        return settings
    if importlib.util.find_spec("vllm") is None:
        raise WrongUsage(
            "vLLM is not installed here. `make setup ENGINE=vllm` installs it (6 GB); "
            "--engine scripted does without."
        )
    if settings.model is not None:
        return settings
    model = model_dir()
    if model is None:
        raise WrongUsage(
            "the small model is not there yet. `make setup ENGINE=vllm` makes it; or name one with "
            "--model, or take --engine scripted."
        )
    named = any(option.startswith("served_model_name=") for option in settings.engine_option)
    name = () if named else (f"served_model_name={MODEL_NAME}",)
    return replace(settings, model=str(model), engine_option=(*settings.engine_option, *name))
