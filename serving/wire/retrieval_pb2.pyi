from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_GREEDY: _ClassVar[Mode]
    MODE_SAMPLED: _ClassVar[Mode]

class Degradation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEGRADATION_UNSPECIFIED: _ClassVar[Degradation]
    DEGRADATION_COLD_START: _ClassVar[Degradation]
    DEGRADATION_UNRANKED: _ClassVar[Degradation]
MODE_UNSPECIFIED: Mode
MODE_GREEDY: Mode
MODE_SAMPLED: Mode
DEGRADATION_UNSPECIFIED: Degradation
DEGRADATION_COLD_START: Degradation
DEGRADATION_UNRANKED: Degradation

class RetrieveRequest(_message.Message):
    __slots__ = ("context_id", "features", "embedding", "num_candidates", "num_slots", "excluded_item_ids", "allowed_items", "sampling", "request_id")
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    features: ContextFeatures
    embedding: ContextEmbedding
    num_candidates: int
    num_slots: int
    excluded_item_ids: _containers.RepeatedScalarFieldContainer[str]
    allowed_items: ItemList
    sampling: Sampling
    request_id: str
    def __init__(self, context_id: _Optional[str] = ..., features: _Optional[_Union[ContextFeatures, _Mapping]] = ..., embedding: _Optional[_Union[ContextEmbedding, _Mapping]] = ..., num_candidates: _Optional[int] = ..., num_slots: _Optional[int] = ..., excluded_item_ids: _Optional[_Iterable[str]] = ..., allowed_items: _Optional[_Union[ItemList, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ContextFeatures(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: FeatureValues
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[FeatureValues, _Mapping]] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.MessageMap[str, FeatureValues]
    def __init__(self, values: _Optional[_Mapping[str, FeatureValues]] = ...) -> None: ...

class FeatureValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class ContextEmbedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class ItemList(_message.Message):
    __slots__ = ("item_ids",)
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("seed",)
    SEED_FIELD_NUMBER: _ClassVar[int]
    seed: int
    def __init__(self, seed: _Optional[int] = ...) -> None: ...

class RetrieveResponse(_message.Message):
    __slots__ = ("model_id", "model_version", "item_ids", "scores", "experts", "request_id", "context_id", "mode", "inclusion_propensities", "log_probability", "slate", "slate_probabilities", "degradations")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    INCLUSION_PROPENSITIES_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SLATE_FIELD_NUMBER: _ClassVar[int]
    SLATE_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    DEGRADATIONS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_version: int
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    scores: _containers.RepeatedScalarFieldContainer[float]
    experts: _containers.RepeatedScalarFieldContainer[int]
    request_id: str
    context_id: str
    mode: Mode
    inclusion_propensities: _containers.RepeatedScalarFieldContainer[float]
    log_probability: float
    slate: _containers.RepeatedScalarFieldContainer[int]
    slate_probabilities: _containers.RepeatedScalarFieldContainer[float]
    degradations: _containers.RepeatedScalarFieldContainer[Degradation]
    def __init__(self, model_id: _Optional[str] = ..., model_version: _Optional[int] = ..., item_ids: _Optional[_Iterable[str]] = ..., scores: _Optional[_Iterable[float]] = ..., experts: _Optional[_Iterable[int]] = ..., request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., inclusion_propensities: _Optional[_Iterable[float]] = ..., log_probability: _Optional[float] = ..., slate: _Optional[_Iterable[int]] = ..., slate_probabilities: _Optional[_Iterable[float]] = ..., degradations: _Optional[_Iterable[_Union[Degradation, str]]] = ...) -> None: ...

class BatchRetrieveRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RetrieveRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RetrieveRequest, _Mapping]]] = ...) -> None: ...

class BatchRetrieveResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchRetrieveResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchRetrieveResult, _Mapping]]] = ...) -> None: ...

class BatchRetrieveResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: RetrieveResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[RetrieveResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class RecordFeedbackRequest(_message.Message):
    __slots__ = ("shown", "slate", "slate_probabilities", "rewards")
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    SLATE_FIELD_NUMBER: _ClassVar[int]
    SLATE_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    shown: RetrieveResponse
    slate: _containers.RepeatedScalarFieldContainer[int]
    slate_probabilities: _containers.RepeatedScalarFieldContainer[float]
    rewards: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, shown: _Optional[_Union[RetrieveResponse, _Mapping]] = ..., slate: _Optional[_Iterable[int]] = ..., slate_probabilities: _Optional[_Iterable[float]] = ..., rewards: _Optional[_Iterable[float]] = ...) -> None: ...

class RecordFeedbackResponse(_message.Message):
    __slots__ = ("is_new",)
    IS_NEW_FIELD_NUMBER: _ClassVar[int]
    is_new: bool
    def __init__(self, is_new: _Optional[bool] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model_id", "model_version", "num_contexts", "num_items", "num_experts", "embedding_dim", "num_candidates", "context_features", "index", "index_recall", "has_ranker", "max_candidates", "max_batch", "max_message_bytes", "max_in_flight")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INDEX_RECALL_FIELD_NUMBER: _ClassVar[int]
    HAS_RANKER_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_version: int
    num_contexts: int
    num_items: int
    num_experts: int
    embedding_dim: int
    num_candidates: int
    context_features: _containers.RepeatedScalarFieldContainer[str]
    index: str
    index_recall: float
    has_ranker: bool
    max_candidates: int
    max_batch: int
    max_message_bytes: int
    max_in_flight: int
    def __init__(self, model_id: _Optional[str] = ..., model_version: _Optional[int] = ..., num_contexts: _Optional[int] = ..., num_items: _Optional[int] = ..., num_experts: _Optional[int] = ..., embedding_dim: _Optional[int] = ..., num_candidates: _Optional[int] = ..., context_features: _Optional[_Iterable[str]] = ..., index: _Optional[str] = ..., index_recall: _Optional[float] = ..., has_ranker: _Optional[bool] = ..., max_candidates: _Optional[int] = ..., max_batch: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_in_flight: _Optional[int] = ...) -> None: ...
