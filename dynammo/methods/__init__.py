"""Methods of class-incremental learning: what a run can learn and measure, all treated alike.

`dynammo.methods.base` says what a method is. To add one, write a file here and a line below. The
order of the lines is the order of tables and figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo.registry import Registry

if TYPE_CHECKING:  # importing the table imports no part
    from dynammo.methods.base import Described

METHODS: Registry[type[Described]] = Registry(
    "method",
    {
        "merged": "dynammo.methods.stepwise:Merged",
        "unmerged": "dynammo.methods.stepwise:Unmerged",
        "frozen": "dynammo.methods.stepwise:Frozen",
        "acmap": "dynammo.methods.acmap:ACMap",
        "ranpac": "dynammo.methods.ranpac:RanPac",
        "clsnet": "dynammo.methods.clsnet:ComplementarySubnetworks",
        "ncm": "dynammo.methods.ncm:NearestClassMean",
        "lda": "dynammo.methods.lda:LinearDiscriminant",
        "slda": "dynammo.methods.slda:StreamingDiscriminant",
        "klda": "dynammo.methods.klda:KernelDiscriminant",
        "fecam": "dynammo.methods.fecam:ClassCovariances",
        "layup": "dynammo.methods.layup:LayeredRidge",
        "anacp": "dynammo.methods.anacp:AnalyticProjection",
        "fsa": "dynammo.methods.fsa:FirstSessionAdaptation",
        "er": "dynammo.methods.er:ExperienceReplay",
        "derpp": "dynammo.methods.derpp:DarkExperienceReplay",
        "icarl": "dynammo.methods.icarl:ICarl",
        "wa": "dynammo.methods.wa:WeightAligning",
        "bic": "dynammo.methods.bic:BiasCorrection",
        "ucir": "dynammo.methods.ucir:UnifiedRebalancing",
        "podnet": "dynammo.methods.podnet:PooledOutputs",
        "mecil": "dynammo.methods.mecil:LowFidelity",
        "der": "dynammo.methods.der:DynamicExpansion",
        "dflm": "dynammo.methods.dflm:FeatureMatching",
        "lwf": "dynammo.methods.lwf:LearningWithoutForgetting",
        "ewc": "dynammo.methods.ewc:ElasticWeightConsolidation",
        "finetune": "dynammo.methods.finetune:Finetune",
        "joint": "dynammo.methods.joint:Joint",
    },
    group="dynammo.methods",
)
