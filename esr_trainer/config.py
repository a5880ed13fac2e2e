"""The settings that decide a run; each is named once, here, and is a command-line option and a key of a YAML file."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from esr_trainer.command_line import Options
from esr_trainer.relevance_options import RelevanceOptions

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

OnlineName = Literal["top1", "ca", "ca-swr", "ca-poisson", "ca-heads", "v-swr", "v"]
OffPolicyName = Literal["ce", "ips", "two-stage-ips", "topk-ips", "ca-swr-ips", "ca-poisson-ips", "infonce"]
AdaptingName = Literal["pg-ret"]
EstimatorName = Literal[OnlineName, OffPolicyName, AdaptingName]
EnvironmentName = Literal["kuairec", "synthetic", "interactions"]
LateStageRankerName = Literal["optimal", "noisy", "uniform", "anti", "learned"]
SlotWeightsName = Literal["sum", "mean", "dcg"]
DeviceName = Literal["cpu", "cuda"]
CatalogueName = Literal["auto", "full", "sampled"]
LearningRateScaleName = Literal["none", "propensity"]
VarianceReductionName = Literal["none", "baseline", "grpo", "control-variate"]
ShardingName = Literal["auto", "row-wise", "table-wise", "data-parallel"]
PresetName = Literal["default", "paper"]
Resume = Literal["auto", "never"] | Path


OFF_POLICY: tuple[str, ...] = get_args(OffPolicyName)
"""Estimators that learn from a log."""

ONLINE: tuple[str, ...] = get_args(OnlineName)
"""Estimators that interact with a world; `pg-ret` does neither: it asks a relevance oracle."""

REWARD_NAMES = ("recall", "novelty")
"""Rewards of `pg-ret` beside those of a file."""

V_FAMILY = ("v", "v-swr")
"""Estimators that follow the probability of the drawn candidates; the others follow an item's inclusion probability."""

SUMS_TO_K = ("ca-poisson", "ca-heads")
"""Estimators whose probabilities sum to K, so that their score function over all candidates has mean zero."""

FOLLOWS_WHOLE_ITEMS = ("ca-heads",)
"""Estimators without a form for a sample of the catalogue."""

FUSED = ("top1", "ca-swr", "v-swr", "ca-poisson")
"""Estimators that ask of the catalogue no more than sums and single items, which the fused path has."""

FUSED_CATALOGUE = 20_000
"""Items from which a step on CUDA is fused: the default step's logits, 4 B N of 4 bytes, are 41 MB there, about the
cache of a current device; below, an array of them costs little, and there is less to start. Not measured."""

LARGE_CATALOGUE = 50_000
"""Items above which `--catalogue auto` samples."""

RANDOM_ORDERS = ("noisy", "uniform")
"""Late-stage rankers that draw their order; the others, learned and brought ones too, show a fixed one."""

GROUP = 8
"""G of GRPO."""

PAPER_PRESET = {
    "init_std": 1.0,
    "optimizer": "adagrad",
    "experts": 1,
    "candidates": 10,
    "embedding_dim": 10,
    "entropy": 0.0,
}
"""arXiv:2605.26385 §4, as DESIGN §5 gives it; batch 128 and temperature 1 are the default preset's too."""


def scaled_learning_rate(learning_rate: float, propensity: float) -> float:
    """lr = lr_0 / E[LSR propensity of its greedy item] (arXiv:2605.26385 App. E, Eq. 9)."""
    return learning_rate / propensity


def paper_learning_rate(estimator: str, lsr: str | Path) -> float:
    """The published learning rates: 1e-1 for the V family; for the others 1e-2, scaled at K = 10 and rounded.

    The LSR shows its favourite of ten with a probability of about 0.6 where it is noisy, of 1 where its order is fixed.
    """
    if estimator in V_FAMILY:
        return 1e-1
    return round(scaled_learning_rate(1e-2, {"noisy": 0.6, "uniform": 0.1}.get(str(lsr), 1.0)), 2)


def misuse(variance_reduction: str, estimator: str, lsr: str | Path, batch: int) -> str | None:
    """Why a variance reduction is wrong to use here, in one line, or None."""
    if variance_reduction == "baseline" and estimator not in V_FAMILY:
        return f"(baseline) is for v and v-swr: {estimator} follows its objective only with rewards above 0"
    if variance_reduction == "control-variate" and estimator in V_FAMILY:
        return f"(control-variate) does nothing for {estimator}, whose log-probability is the same for every candidate"
    if variance_reduction == "control-variate" and lsr not in RANDOM_ORDERS and estimator not in SUMS_TO_K:
        return f"(control-variate) vanishes for lsr {lsr}, which shows a fixed order"
    if variance_reduction == "grpo" and batch % GROUP:
        return f"(grpo) takes {GROUP} slates per context: batch ({batch}) must be a multiple"
    return None


def misuse_of_log(config: "TrainConfig") -> str | None:
    """Why an estimator, a log and what goes with them do not fit together, in one line, or None."""
    has_log, is_online = config.from_log is not None, config.estimator in ONLINE
    has_ranker = config.values_in_a_world or config.lsr == "learned" or isinstance(config.lsr, Path)
    rules = (
        (
            has_log or config.estimator not in OFF_POLICY or config.estimator == "infonce",
            f"estimator ({config.estimator}) learns from a log: name it with --from-log",
        ),
        (
            not (has_log and is_online),
            f"estimator ({config.estimator}) interacts with a world: --from-log takes {', '.join(OFF_POLICY)}, pg-ret",
        ),
        *(
            (
                is_online or value in ("none", "cpu", "auto", "full"),
                f"{name} ({value}) is for rounds that are played: leave it out with "
                + ("--from-log" if has_log else f"--estimator {config.estimator}"),
            )
            for name in ("variance_reduction", "learning_rate_scale", "device", "catalogue")
            for value in [getattr(config, name)]
        ),
        (
            has_ranker,
            f"lsr ({config.lsr}) goes by a world's rewards: name a world with --data, or take learned or a file",
        ),
    )
    return next((rule for is_kept, rule in rules if not is_kept), None)


def misuse_of_sample(config: "TrainConfig", num_items: int | None = None) -> str | None:
    """Why a sampled catalogue does not fit the other settings, or a catalogue of N items; in one line, or None."""
    if config.catalogue == "full" or (config.catalogue == "auto" and not config.samples(num_items or 0)):
        return None
    why = "catalogue (sampled)" if config.catalogue == "sampled" else f"catalogue (auto) samples the {num_items} items"
    rules = (
        (config.estimator not in FOLLOWS_WHOLE_ITEMS, f"estimator ({config.estimator}) follows whole items"),
        (config.device == "cpu", f"device ({config.device}) has no index"),
        (config.text_encoder is None, f"text_encoder ({config.text_encoder}) has a projection that every row shares"),
        (config.head_size >= config.candidates, f"catalogue_head ({config.head_size}) is below {config.candidates}"),
        (num_items is None or num_items > config.candidates, f"candidates ({config.candidates}) are all the items"),
    )
    wrong = next((rule for is_kept, rule in rules if not is_kept), None)
    return wrong and f"{why}: {wrong}; name --catalogue full, or change that"


def misuse_of_pg_ret(config: "TrainConfig") -> str | None:
    """Why settings of `pg-ret` do not fit together, in one line, or None."""
    if config.estimator != "pg-ret":
        given = next((name for name in ("init", "production") if getattr(config, name)), None)
        return f"{given} ({getattr(config, given)}) is for --estimator pg-ret" if given else None
    told, oracle = config.share_current + config.share_explored, config.relevance.oracle
    is_file = Path(config.reward.rpartition(":")[0]).suffix == ".py"
    rules = (
        (config.init is not None, "estimator (pg-ret) needs --init, the run whose context tower it adapts"),
        (
            config.reward in REWARD_NAMES or is_file,
            f"reward ({config.reward}) must be recall, novelty or FILE.py:function",
        ),
        (
            config.entropy == 0,
            f"entropy ({config.entropy:g}) is for policies over the catalogue: leave it out with pg-ret",
        ),
        (
            told <= 1 + 1e-9,
            f"share_current ({config.share_current:g}) and share_explored ({config.share_explored:g}) exceed 1",
        ),
        (
            told >= 1 - 1e-9 or config.from_log is not None,
            f"share_current ({config.share_current:g}) and share_explored ({config.share_explored:g}) leave pairs to "
            "feedback: name it with --from-log",
        ),
        (
            config.relevance.relevant_above is None or oracle == "labels",
            f"relevance.relevant_above ({config.relevance.relevant_above}) is for labels, not for {oracle}",
        ),
    )
    return next((rule for is_kept, rule in rules if not is_kept), None)


class TrainConfig(Options):
    """What decides the result of a training run."""

    sections: ClassVar[Mapping[str, str]] = {
        "estimator": "what is learned",
        "environment": "from whom",
        "lsr": "the two-stage system",
        "context_features": "features",
        "variance_reduction": "variance",
        "set_size": "two-stage-ips",
        "random_negatives": "infonce",
        "init": "pg-ret",
        "embedding_dim": "towers and optimizer",
        "catalogue": "large catalogues",
        "learning_rate": "steps",
        "config": "the run directory, several runs, several processes",
    }
    estimator: EstimatorName = "top1"
    """Log-probability that the reward's gradient follows: the shown item's chance to be a candidate (`top1`, `ca-swr`:
    as if drawn with replacement; `ca`: others greedy; `ca-poisson`: in closed form; `ca-heads`: in closed form, draw by
    draw, where each expert owns at most 4 positions), or the drawn candidates' (`v-swr`: as if with replacement; `v`:
    exact). From positives alone, of a log or of the world: `infonce`. From a run that is there, for a goal of its own,
    without a new index: `pg-ret`. The rest learn from logs: see --from-log."""
    preset: PresetName = "default"
    """`default` learns fastest; `paper` is arXiv:2605.26385's: tables from N(0, 1), Adagrad, its learning rates, M = 1,
    K = 10. An option that is given wins over either."""
    environment: EnvironmentName | None = None
    """World to learn in; default the --data file's, or kuairec."""
    data: Path | None = None
    """Your own log, CSV or Parquet with the columns context_id, item_id, reward and optionally propensity: a model
    fitted to it answers for its users. Or KuaiRec's small_matrix.csv, small_matrix_gt2.npz or
    small_matrix_semisynthetic.npz, or the arrays of a synthetic world (npz). Without it a simulator stands in."""
    from_log: str | None = None
    """Learn from a log instead of playing rounds: the server's feedback log (SQLite, PostgreSQL or Parquet; its sampled
    rounds), a CSV in Open Bandit's form, or CSV or Parquet with context_id, item_id, reward and optionally propensity.
    With --data or --environment the run is valued in that world, of the same ids; without, on held-out impressions. The
    LSR is then `learned` from the log by default, and the entropy bonus 0."""
    world_seed: Seed = 0
    """Seed of a generated world, of the fit to a log, and of the feedback and the fit of a learned ranker."""
    contexts: PositiveInt | None = None
    """C of a generated world; default 1,411 (kuairec) or 1,000 (synthetic)."""
    items: PositiveInt | None = None
    """N of a generated world; default 3,327 (kuairec) or 1,000 (synthetic)."""
    lsr: LateStageRankerName | Path = "optimal"
    """Late-stage ranker: by reward, by reward with Plackett-Luce noise, at random, worst first, by a model that is
    fitted to logged feedback first (`learned`), or by a file: an ONNX model of context_id (B,) and item_ids (B, K) as
    strings, or context_row and item_rows as int64, giving scores (B, K); or a run whose learned ranker to use again."""
    lsr_interactions: Annotated[int, Field(ge=2)] = 500_000
    """Logged interactions that `--lsr learned` is fitted to: random items shown to random users of the world."""
    slot_weights: SlotWeightsName = "sum"
    """How much slot l counts: 1, 1/L, or 1/log2(l+1)."""
    candidates: PositiveInt = 100
    """K: items that the early-stage ranker hands to the late-stage ranker."""
    slate: PositiveInt = 1
    """L: items that the late-stage ranker shows."""
    experts: PositiveInt = 4
    """M: tower pairs; the candidates are shared out among them."""
    context_features: Path | None = None
    """CSV or Parquet of context features (first column the id), such as KuaiRec's user_features.csv; default ids
    alone."""
    item_features: Path | None = None
    """CSV or Parquet of item features (first column the id), such as KuaiRec's item_categories.csv or
    kuairec_caption_category.csv; default ids alone."""
    text: tuple[str, ...] = ()
    """Feature columns that are text, learned by hashed character n-grams; a column of more than 500 distinct values
    that are not numbers is in any case."""
    text_buckets: Annotated[int, Field(gt=0, le=1 << 31)] = 1 << 14
    """Rows of a text column's table; n-grams that fall together share one."""
    text_encoder: str | None = None
    """Learn text by the vectors of a Hugging Face encoder instead, mean-pooled and frozen, and a projection of them:
    the name of a model on the hub, or its folder. Needs the extra [hf] when a run begins; what is trained, exported and
    served needs no encoder, and knows the texts of the feature tables alone."""
    variance_reduction: VarianceReductionName = "none"
    """`baseline`: a running mean per context, for `v` and `v-swr`; `grpo`: rewards normalised over 8 slates per
    context; `control-variate`: a zero-mean correction by the LSR's propensities, for the others under a random LSR."""
    entropy: NonNegative = 0.1
    """Weight of the entropy bonus, as a share of the batch's mean reward: the mean entropy of the experts' softmax is
    added to what is maximised, so that items that are sure to be candidates do not end the exploration."""
    set_size: PositiveInt = 30
    """k of `two-stage-ips`: items in a set, the logged one included."""
    sets: PositiveInt = 100
    """tau of `two-stage-ips`: sets drawn per impression."""
    set_temperature: Positive = 1.0
    """The sets of `two-stage-ips` are drawn from softmax(logits / this); above 1 they are more varied."""
    alpha: NonNegative = 0.01
    """Weight of a set's other items in `two-stage-ips`."""
    lsr_temperature: Positive = 1.0
    """In `two-stage-ips` the ranker shows an item of a set by softmax(scores / this)."""
    random_negatives: NonNegativeInt = 128
    """Random items that `infonce` compares with, beside the batch's."""
    relevance: RelevanceOptions = RelevanceOptions()
    """Who says what is relevant, for `pg-ret`; of a world's labels, also which pairs are `infonce`'s positives."""
    init: Path | None = None
    """Run whose context tower `pg-ret` adapts; the item embeddings stay, so that its index stays valid. The new run is
    of the same tables, and of the same world unless --data or --environment names another of the same ids."""
    production: Path | None = None
    """Run whose top items count as irrelevant under --reward novelty; default the --init run."""
    reward: str = "recall"
    """What `pg-ret` earns for saying yes to an item, and loses for saying no: `recall`: 1 for a relevant one that is
    missing from the current top, -1 for an irrelevant one in it; `novelty`: the same, where what --production has in
    its top counts as irrelevant; or FILE.py:function, a function of relevance, whether an item is in the current top,
    and whether it is in production's: three tensors (B, J), that gives such a tensor of numbers from -1 to 1."""
    reward_top: PositiveInt = 2
    """How many items the top has that --reward speaks of; shared out among the experts as the candidates are."""
    pairs: PositiveInt = 16
    """Items per context and step that `pg-ret` decides on."""
    share_current: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of them that is drawn from the current top."""
    share_explored: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share that is drawn by --explorer; the rest is drawn from the context's impressions in --from-log."""
    explorer: Literal["init", "uniform"] = "init"
    """`init`: any of the --init run's own top --candidates; `uniform`: any item."""
    embedding_dim: PositiveInt = 10
    """Dimension of an expert's embeddings."""
    init_std: Positive = 0.1
    """Standard deviation of the embedding tables at the start."""
    temperature: Positive = 1.0
    """Logits are inner products divided by this."""
    optimizer: Literal["adam", "adagrad"] = "adam"
    """Optimizer of the towers."""
    catalogue: CatalogueName = "auto"
    """Whether a step goes through the `full` catalogue, or through a head that an index finds and a random rest
    (`sampled`), which costs about the same whatever the number of items; `auto` samples above 50,000 items."""
    catalogue_head: PositiveInt | None = None
    """Items per context that the index of a sampled catalogue looks for; default twice --candidates, at least 256."""
    catalogue_tail: PositiveInt = 8192
    """Items of a sampled catalogue's random rest: about as many that may come early in a draw, and as many others that
    stand for the rest in every sum."""
    index_every: PositiveInt = 100
    """Steps after which the index is built anew, in the background; the new one is asked as many steps later."""
    learning_rate: Positive = 0.01
    """Learning rate of the optimizer."""
    learning_rate_scale: LearningRateScaleName = "none"
    """`propensity` divides the learning rate by how probably the LSR shows its own top candidate, estimated at the
    start: a noisy LSR spreads the same reward over more items. For all but v and v-swr."""
    batch: PositiveInt = 128
    """Contexts per step, drawn uniformly with replacement."""
    steps: PositiveInt = 2000
    """Gradient steps in all; a run that is taken up again may ask for more."""
    seed: Seed = 0
    """Seed of the initial tables and of every draw."""
    device: DeviceName = "cpu"
    """Where the run computes and draws; the draws, and so the run, differ from one to the other. On `cuda` sums may
    differ in rounding from run to run, and features must be ids alone; from 20,000 items on, `top1`, `ca-swr`, `v-swr`
    and `ca-poisson` store no logits of the whole catalogue if the extra [gpu] is installed."""
    evaluate_every: PositiveInt = 100
    """Steps between two evaluations on all contexts."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; the last and the best are kept."""
    patience: NonNegativeInt = 0
    """Evaluations without a new best policy value after which the run ends early; 0 never ends it."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """Fill in what a preset or a log decides and nobody gave."""
        if isinstance(given, dict) and given.get("from_log") is not None and given.get("estimator") != "pg-ret":
            given = {"lsr": "learned", "entropy": 0.0, **given}
        if isinstance(given, dict) and given.get("estimator") in ("infonce", "pg-ret"):
            given = {"entropy": 0.0, **given}
        if isinstance(given, dict) and given.get("preset") == "paper":
            estimator, lsr = (given.get(name, cls.model_fields[name].default) for name in ("estimator", "lsr"))
            is_scaled_here = given.get("learning_rate_scale") == "propensity"  # not twice: from a fixed order's
            rate = paper_learning_rate(estimator, "optimal" if is_scaled_here else lsr)
            return {**PAPER_PRESET, "learning_rate": rate, **given}
        return given

    @model_validator(mode="after")
    def _options_fit(self) -> "TrainConfig":
        if self.slate > self.candidates:
            raise ValueError(f"slate ({self.slate}) exceeds candidates ({self.candidates})")
        if wrong := misuse_of_log(self) or misuse_of_pg_ret(self) or misuse_of_sample(self):
            raise ValueError(wrong)
        if wrong := misuse(self.variance_reduction, self.estimator, self.lsr, self.batch):
            raise ValueError(f"variance_reduction {wrong}")
        if self.learning_rate_scale == "propensity" and self.estimator in V_FAMILY:
            raise ValueError(
                f"learning_rate_scale (propensity) is for the estimators that follow an item: {self.estimator} follows "
                "the candidates, whatever the LSR shows of them"
            )
        return self

    def samples(self, num_items: int) -> bool:
        """Whether a step goes through a sample of N items."""
        is_large = self.catalogue == "auto" and self.device == "cpu" and num_items > LARGE_CATALOGUE
        return self.catalogue == "sampled" or is_large

    def fuses(self, num_items: int) -> bool:
        """Whether a step goes through all of N items without storing their logits."""
        is_worth_it = self.device == "cuda" and num_items >= FUSED_CATALOGUE
        return is_worth_it and self.estimator in FUSED and find_spec("triton") is not None

    @property
    def head_size(self) -> int:
        """H of a sampled catalogue."""
        return self.catalogue_head or max(256, 2 * self.candidates)

    @property
    def values_in_a_world(self) -> bool:
        """Whether there is a world: where it is named, and else always but for what learns from a log."""
        is_named = self.data is not None or self.environment is not None
        return self.from_log is None or is_named or self.estimator == "pg-ret"
