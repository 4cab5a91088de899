"""The one configuration object: what an experiment is, typed, validated, and documented.

`dynammo.config.reading` makes it from a file and overrides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from dynammo.adapters import ADAPTERS
from dynammo.config.presets import PRESETS
from dynammo.data import DATA_SOURCES
from dynammo.data.formats.pictures import Form
from dynammo.heads import HEAD_RULES
from dynammo.hierarchy import problems_of_parents
from dynammo.merging import MERGE_RULES
from dynammo.methods import METHODS
from dynammo.registry import Registry


class Section(BaseModel):
    """Base of every section: immutable, and no key goes unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_meant(cls, value: Any, field: ValidationInfo) -> Any:
        """Pydantic takes true for the number 1; no path or name holds a NUL."""
        annotation = cls.model_fields[str(field.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise PydanticCustomError("truth_value", "true and false are no value of it")
        if isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("nul", "no text may hold a NUL")
        return value


class _Known:
    """Marks a name that must be in a registry."""

    def __init__(self, registry: Registry[Any]) -> None:
        self._registry = registry

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": sorted(self._registry)}

    def _check(self, name: str) -> str:
        known = self._registry
        if name not in known:
            raise ValueError(f"unknown {known.kind} {name!r}; known: {', '.join(sorted(known))}")
        return name


class DataConfig(Section):
    """Which images."""

    name: str = Field(
        "digits",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        description="name of the data set; names the experiment and the registered model",
    )
    source: Annotated[str, _Known(DATA_SOURCES)] = Field(
        "digits", description="how the images are laid out"
    )
    path: str = Field(
        "data/digits", min_length=1, description="folder of the images, or the CSV manifest"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="of the source: dynammo datasets NAME lists them"
    )
    repeats: Literal["refuse", "warn"] = Field(
        "refuse",
        description="the same picture, or nearly so, in train and in test, or the same under two "
        "classes: warn is for published sets that have such, as CIFAR-100",
    )
    test_share: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="of a batch for a learner: so many of the images of a class that comes without "
        "test images become test images, by group",
    )


class ScenarioConfig(Section):
    """In which order the classes arrive."""

    classes_per_task: int | None = Field(
        None, ge=1, description="k new classes a task; exclusive with tasks"
    )
    tasks: list[list[str]] | None = Field(
        None,
        min_length=1,
        description="the tasks as explicit lists of class names, in which * stands for any text; "
        "exclusive with classes_per_task",
    )
    class_order: Literal["seed", "sorted"] | list[str] = Field(
        "seed",
        description="seed: shuffled by the seed; sorted: by name; or a list of all classes",
    )

    @model_validator(mode="after")
    def _one_way_of_naming_tasks(self) -> ScenarioConfig:
        problems = []
        if self.tasks is not None and self.classes_per_task is not None:
            problems.append("give either scenario.tasks or scenario.classes_per_task, not both")
        if self.tasks is None and self.classes_per_task is None:
            problems.append("give scenario.tasks or scenario.classes_per_task")
        if self.tasks is not None and isinstance(self.class_order, list):
            problems.append(
                "scenario.class_order cannot be a list when scenario.tasks lists the classes"
            )
        seen: dict[str, int] = {}
        for number, classes in enumerate(self.tasks or [], start=1):
            if not classes:
                problems.append(f"scenario.tasks: task {number} is empty")
            for name in classes:
                if name in seen:
                    problems.append(
                        f"class {name!r} appears in task {seen[name]} and in task {number}"
                    )
                seen.setdefault(name, number)
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ImageConfig(Section):
    """What the network sees."""

    size: int = Field(96, ge=16, le=1024, description="images are resized to size x size pixels")
    slices: int = Field(
        1,
        ge=1,
        le=256,
        description="more than 1: images are volumes or sequences (docs/how-to/data.md), each "
        "brought to so many slices; a volume costs so many times a picture",
    )
    window: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="the values shown as black and as white, of images with more than 8 bits: "
        "[-160, 240] for soft tissue in CT; default: what the file says",
    )

    @field_validator("window")
    @classmethod
    def _rises(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"expected two rising numbers, got {window[0]:g} and {window[1]:g}")
        return window

    @property
    def form(self) -> Form:
        """What every image is brought to."""
        return Form.of(self.size, self.slices, self.window)


class ArchitectureConfig(Section):
    """What builds the network; where its weights come from is the rest of `BackboneConfig`."""

    name: str = Field(
        "tf_efficientnet_lite0",
        min_length=1,
        description="any image model of timm, CNN or transformer; hf-hub:owner/model for one of "
        "the hub, local-dir:path for a folder that holds one",
    )
    positions: list[str] | None = Field(
        None,
        min_length=1,
        description="modules to put an adapter before or, with lora, ssf and bottleneck, into "
        "whose layers; default: the last four stages (of a ViT: its quarters)",
    )
    levels: int | None = Field(
        None,
        ge=1,
        description="take the features from the last so many levels of resolution (3: at 1/8, "
        "1/16 and 1/32 of the image's) or, in a ViT, blocks, instead of from the network's last "
        "layer",
    )
    pool: Literal["mean", "thirds"] = Field(
        "mean",
        description="of volumes: the mean of the slices' features, or the means of the first, the "
        "middle and the last third, where it matters where along the volume something is",
    )

    @property
    def architecture(self) -> ArchitectureConfig:
        """The part that builds the network."""
        return ArchitectureConfig.model_validate(
            self.model_dump(include=set(ArchitectureConfig.model_fields))
        )


class BackboneConfig(ArchitectureConfig):
    """The frozen network."""

    pretrained: bool = Field(
        True, description="ImageNet weights; false means random and is for tests"
    )
    weights: str | None = Field(
        None, description="local .safetensors or .pth file; default: bundled or timm's hub"
    )
    renormalise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="by how much BatchNorm's means and variances are moved towards those of the "
        "first task's images: 0 leaves them as pretrained, 1 replaces them",
    )


class AdapterConfig(Section):
    """The trainable part of a task."""

    name: Annotated[str, _Known(ADAPTERS)] = Field(
        "conv",
        description="conv is the paper's adapter; docs/how-to/extending.md has a table of all",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the adapter"
    )
    init: Literal["previous", "fresh"] = Field(
        "previous", description="start adapter t from adapter t-1, or anew"
    )
    tasks: int | None = Field(
        None,
        ge=1,
        description="train adapters for the first so many tasks only; later tasks use what was "
        "merged by then, so that no statistics drift",
    )


class TrainConfig(Section):
    """Training of adapters (stage 1 of the paper) and of methods that train the whole network."""

    epochs: int = Field(8, ge=1, description="passes over a task's images; the paper takes 200")
    learning_rate: float = Field(
        0.01,
        gt=0,
        le=1e38,  # float32 holds no more
        description="of adapters: of SGD at the start, of AdamW at its highest; the paper takes "
        "0.01",
    )
    network_learning_rate: float = Field(
        1e-3, gt=0, le=1e38, description="likewise, of methods that train the whole network"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(
        5e-4, ge=0, le=1e38, description="of what is trained, temporary head included"
    )
    batch_size: int = Field(
        32, ge=2, le=2**20, description="images a step; BatchNorm needs at least 2"
    )
    milestones: list[float] = Field(
        [0.35, 0.65, 0.85],
        description="rising fractions of the epochs, within 0 and 1, at which the learning rate "
        "drops tenfold",
    )
    optimiser: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="of adapters: sgd with momentum and milestones, as the paper has it, or adamw, "
        "whose learning rate rises and falls in one cycle",
    )
    labels: Literal["others", "all"] = Field(
        "others",
        description="of adapters: what training tells apart: a task's classes and all others as "
        "one, as the paper has it, or all classes known",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="of adapters: share of each label that goes to all classes"
    )
    replay: float = Field(
        0.0,
        ge=0,
        le=1e38,
        description="of adapters: weight of each old class as the merged model's class statistics "
        "have it, features being drawn from them, against that of a new class; 0: none",
    )
    distil: float = Field(
        0.0,
        ge=0,
        le=1e38,
        description="of adapters: how much features are held where the adapters merged before have "
        "them; 0: not at all",
    )
    flip: bool = Field(
        True, description="random horizontal flips; turn off where left and right differ"
    )
    turns: bool = Field(
        False,
        description="of adapters: random turns by quarters as well, where orientation means "
        "nothing, as in skin, cells and tissue",
    )
    brightness: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="of adapters: images brighter or darker at random, by up to this share; with "
        "more than 0 nothing is kept of the frozen layers' outputs, so training takes longer",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: autocast of the training's passes, for large networks on processors "
        "with instructions for it; it slows the default backbone down",
    )
    cache_mb: int = Field(
        2000,
        ge=0,
        description="up to how many MB of the frozen layers' outputs training keeps in memory (of "
        "the GPU, where there is one); more go into a temporary file",
    )

    @property
    def of_adapters(self) -> TrainConfig:
        """With all that changes no adapter at its default."""
        return self._without("cache_mb", "network_learning_rate")

    @property
    def of_networks(self) -> TrainConfig:
        """With all that is of adapters alone at its default."""
        names = "optimiser", "labels", "label_smoothing", "replay", "distil", "turns", "brightness"
        return self._without("cache_mb", *names)

    def _without(self, *names: str) -> TrainConfig:
        """With some settings at their defaults."""
        defaults = TrainConfig()
        return self.model_copy(update={name: getattr(defaults, name) for name in names})

    @model_validator(mode="after")
    def _milestones_rise(self) -> TrainConfig:
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        if not rising or any(not 0 < m < 1 for m in self.milestones):
            raise ValueError(f"train.milestones must rise within (0, 1), got {self.milestones}")
        return self


class MemoryConfig(Section):
    """The exemplar memory. Exactly one of the two is given."""

    size: int | None = Field(
        None, ge=1, description="images in all, shared equally by the classes seen"
    )
    per_class: int | None = Field(
        None,
        ge=0,
        description="images kept of each class; 0 keeps none, for heads and methods that need none",
    )

    @model_validator(mode="after")
    def _one_budget(self) -> MemoryConfig:
        if (self.size is None) == (self.per_class is None):
            raise ValueError("give exactly one of memory.size and memory.per_class")
        return self


class ClinicalConfig(Section):
    """What is known of a patient beside the image (docs/how-to/data.md): columns of a batch's CSV,
    whose values a learner counts class by class (`dynammo.clinical`).
    """

    categories: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="columns with a few different values, such as sex or site"
    )
    numbers: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="columns with numbers, such as age"
    )
    weight: float = Field(
        0.75, gt=0, le=1, description="how far they are believed; 1: as if they were independent"
    )

    @property
    def names(self) -> list[str]:
        """All of the columns."""
        return [*self.categories, *self.numbers]

    @model_validator(mode="after")
    def _each_once(self) -> ClinicalConfig:
        taken = ["file", "split", "class", "group"]
        if twice := [name for name in self.names if [*taken, *self.names].count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is named twice, or no clinical column")
        return self


class ParentsFile(Section):
    """A file of parents, as it was read (`dynammo.config.parents`): its name, the SHA-256 of its
    bytes, and what it says.
    """

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    content: dict[str, str]

    @model_validator(mode="after")
    def _is_a_hierarchy(self) -> ParentsFile:
        if problems := problems_of_parents(self.content):
            raise ValueError("\n".join(f"{self.file}: {problem}" for problem in problems))
        return self


class ClassesConfig(Section):
    """What is known of the classes themselves (docs/how-to/data.md)."""

    parents: Annotated[ParentsFile, WithJsonSchema({"type": "string"})] | None = Field(
        None,
        description="file of what each class belongs to: a CSV with columns class,parent, or YAML "
        "`class: parent`. It is read once and kept; errors are then measured by it, too",
    )

    @property
    def hierarchy(self) -> dict[str, str] | None:
        """By class or group its parent; none where nothing is known."""
        return self.parents.content if self.parents else None


class RetentionConfig(Section):
    """What a learner keeps of the images it has seen, and for how long (docs/how-to/learner.md).

    Carried out when a batch has been learnt: what is not named here is gone then.
    """

    train: Literal["images", "statistics", "nothing"] = Field(
        "images",
        description="of training images. images: the exemplars that memory asks for, and each "
        "batch's class statistics; statistics: these alone, with which a batch can be forgotten "
        "again; nothing: no more than the head needs",
    )
    test: Literal["images", "features", "nothing"] = Field(
        "images",
        description="of test images. features: old classes are then estimated, not measured; "
        "nothing: they can no longer be measured at all",
    )
    subgroups: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="columns of a batch's CSV (site, sex, age band) that are kept of test images, "
        "to compare subgroups by (docs/how-to/change-control.md)",
    )
    max_mb: float | None = Field(
        None, gt=0, description="of kept images and features in all; the oldest go first"
    )
    max_days: float | None = Field(
        None, ge=0, description="after which kept images and features go"
    )


class MergeConfig(Section):
    """How n adapters become one."""

    rule: Annotated[str, _Known(MERGE_RULES)] = Field(
        "average", description="average is the paper's rule; docs/reference/merging.md has them all"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the rule"
    )
    trust: Literal["full", "held_out"] = Field(
        "full",
        description="held_out: every fifth image is held out from adapters' training; where these "
        "show harm, adapters are halved or left out",
    )


class HeadConfig(Section):
    """The head over all classes (stage 2 of the paper: Adam on frozen features)."""

    rule: Annotated[str, _Known(HEAD_RULES)] = Field(
        "fine_tune",
        description="fine_tune: trained on the exemplars, as the paper's; discriminant: follows "
        "from statistics of all training images' features, which take the place of images",
    )
    init: Literal["new", "task_heads"] = Field(
        "new",
        description="fine_tune: starts from a new head, as the paper's, or from the heads "
        "that the adapters were trained with, merged into one",
    )
    epochs: int = Field(100, ge=1, description="fine_tune: passes over the exemplars")
    learning_rate: float = Field(1e-3, gt=0, le=1e38, description="fine_tune: of Adam")
    batch_size: int = Field(32, ge=1, le=2**20, description="fine_tune: exemplars a step")
    flip: bool = Field(True, description="use the mirrored view of each image as well")
    turns: bool = Field(
        False,
        description="of class statistics: use the views turned by quarters as well, where "
        "orientation means nothing",
    )
    power: float = Field(
        0.5,
        gt=0,
        le=1,
        description="discriminant: to which power features are raised before they are scaled to "
        "unit length",
    )
    shrinkage: float = Field(
        0.5, gt=0, le=1, description="discriminant: of the covariance, towards a multiple of I"
    )
    pooling: Literal["samples", "classes"] = Field(
        "samples",
        description="discriminant: what weighs the same in the covariance; classes: it is the mean "
        "of the classes' own, all of which are kept",
    )
    drift_ridge: float = Field(
        0.3,
        gt=0,
        le=1e38,
        description="discriminant: how reluctantly old statistics follow the features that each "
        "merge changes",
    )


class GateConfig(Section):
    """When a new model may carry the alias `champion`. All conditions must hold."""

    min_last_recall: float = Field(
        0.5, ge=0, le=1, description="mean class recall after the last task, at least"
    )
    max_gap_to_unmerged: float = Field(
        0.05, ge=-1, le=1, description="last mean class recall of unmerged minus merged, at most"
    )
    beat_champion: bool = Field(
        True,
        description="an experiment: not below the present champion, which must have been measured "
        "on the same data and the same classes",
    )
    max_class_loss: float = Field(
        0.1,
        ge=0,
        le=1,
        description="a new version of a learner: recall that a class the champion knows may lose, "
        "at most, as measured. 0.1 is one image of ten; lower it where a class has hundreds",
    )
    by_hand: bool = Field(
        False,
        description="a version of a learner that passed waits for `dynammo promote` before it is "
        "champion; switched off by a version that was promoted so",
    )


class TrackingConfig(Section):
    """What is published beside metrics and artifacts."""

    experiment: str | None = Field(
        None, description="MLflow experiment; default: dynammo-<data.name>"
    )
    register_model: bool = Field(
        True, description="register the merged model as dynammo-<data.name>"
    )
    onnx_graph: bool = Field(
        True,
        description="put the ONNX graph, checked, into the merged model's folder, with which "
        "predict and the served model answer; making it takes some 20 s of processor time, 4 s "
        "for a learner's later versions",
    )
    unknown_alarm: float = Field(
        0.05,
        gt=0,
        lt=1,
        description='share of images of known classes that answers may call unknown, "none of the '
        'classes I know"; the threshold is set on test images',
    )
    unknown_by_class: bool = Field(
        False,
        description="keep to that share for each class by itself, where it has at least "
        "1 / unknown_alarm - 1 test images (19); fewer unknown images are found",
    )


class Config(Section):
    """One experiment."""

    preset: Literal["best", "no_images", "paper"] = Field(
        "best",
        description="decides settings that are not given (docs/explanation/presets.md). "
        "best: linear adapters, folded into the deployed model where the backbone allows it, "
        "and the discriminant head; "
        "no_images: the same without keeping any image, and an adapter for the first task only; "
        "paper: as published",
    )
    seed: int = Field(
        1,
        ge=0,
        lt=2**32,
        description="sets class order, initial weights, sampling and augmentation",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: cuda, else mps, else cpu"
    )
    output: str | None = Field(
        None, description="folder for the results; default: results/<data.name>"
    )
    methods: list[Annotated[str, _Known(METHODS)]] = Field(
        ["merged", "unmerged", "frozen"],
        min_length=1,
        description="what is learnt and measured (docs/reference/methods.md); without merged "
        "nothing is registered",
    )
    method_options: dict[Annotated[str, _Known(METHODS)], dict[str, Any]] = Field(
        default_factory=dict,
        description="keyword arguments of methods, by method: {ewc: {strength: 10}}",
    )
    data: DataConfig = DataConfig()
    scenario: ScenarioConfig = ScenarioConfig(classes_per_task=2)
    image: ImageConfig = ImageConfig()
    backbone: BackboneConfig = BackboneConfig()
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    memory: MemoryConfig = MemoryConfig(size=40)
    retention: RetentionConfig = RetentionConfig()
    clinical: ClinicalConfig = ClinicalConfig()
    classes: ClassesConfig = ClassesConfig()
    merge: MergeConfig = MergeConfig()
    head: HeadConfig = HeadConfig()
    gate: GateConfig = GateConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for section, defaults in PRESETS.get(str(values.get("preset", "best")), {}).items():
            given = values.get(section, {})
            if isinstance(given, dict):
                values[section] = {**defaults, **given}
        memory = values.get("memory")
        given = memory.get("size") if isinstance(memory, dict) else None
        if values.get("preset") == "no_images" and given is not None:
            raise ValueError(
                f"memory.size is {given} and preset no_images keeps none: set memory.per_class=0"
            )
        return values

    @model_validator(mode="after")
    def _memory_is_allowed(self) -> Config:
        if self.retention.train != "images" and self.memory.per_class != 0:
            raise ValueError(
                f"retention.train {self.retention.train} keeps no image: set memory.per_class=0"
            )
        return self

    @model_validator(mode="after")
    def _slices_are_there(self) -> Config:
        if self.backbone.pool != "mean" and self.image.slices == 1:
            raise ValueError(f"backbone.pool {self.backbone.pool} is of volumes: set image.slices")
        return self

    @model_validator(mode="after")
    def _methods_differ(self) -> Config:
        if len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods names one twice: {', '.join(self.methods)}")
        return self

    @model_validator(mode="after")
    def _weights_are_used(self) -> Config:
        if self.backbone.weights is not None and not self.backbone.pretrained:
            raise ValueError("backbone.weights names a file but backbone.pretrained is false")
        return self

    def only(self, *sections: str) -> Config:
        """A configuration that holds these sections and nothing else.

        A step that is given it can depend on no other: reading a section that is not there is an
        AttributeError, not a default.
        """
        chosen = Config.model_construct(
            set(sections), **{name: getattr(self, name) for name in sections}
        )
        for name in type(self).model_fields.keys() - set(sections):
            del chosen.__dict__[name]
        return chosen

    @property
    def title(self) -> str:
        """`skin8 best seed 1`: what tells this experiment from others in a list."""
        return f"{self.data.name} {self.preset} seed {self.seed}"

    @property
    def output_dir(self) -> Path:
        """Where the results of this experiment are published."""
        return Path(self.output or f"results/{self.data.name}")

    @property
    def experiment(self) -> str:
        """The MLflow experiment."""
        return self.tracking.experiment or f"dynammo-{self.data.name}"

    @property
    def model_name(self) -> str:
        """The name the merged model is registered under."""
        return f"dynammo-{self.data.name}"
