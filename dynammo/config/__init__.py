"""The configuration: typed, validated, documented."""

from dynammo.config.presets import PRESETS
from dynammo.config.reading import layered, load_config, parse_overrides
from dynammo.config.sections import (
    AdapterConfig,
    ArchitectureConfig,
    BackboneConfig,
    ClassesConfig,
    ClinicalConfig,
    Config,
    DataConfig,
    GateConfig,
    HeadConfig,
    ImageConfig,
    MemoryConfig,
    MergeConfig,
    ParentsFile,
    RetentionConfig,
    ScenarioConfig,
    Section,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "PRESETS",
    "AdapterConfig",
    "ArchitectureConfig",
    "BackboneConfig",
    "ClassesConfig",
    "ClinicalConfig",
    "Config",
    "DataConfig",
    "GateConfig",
    "HeadConfig",
    "ImageConfig",
    "MemoryConfig",
    "MergeConfig",
    "ParentsFile",
    "RetentionConfig",
    "ScenarioConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
    "layered",
    "load_config",
    "parse_overrides",
]
