from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JudgePairsRequest(_message.Message):
    __slots__ = ("pairs",)
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[RelevancePair]
    def __init__(self, pairs: _Optional[_Iterable[_Union[RelevancePair, _Mapping]]] = ...) -> None: ...

class RelevancePair(_message.Message):
    __slots__ = ("context", "item")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    context: DescribedRow
    item: DescribedRow
    def __init__(self, context: _Optional[_Union[DescribedRow, _Mapping]] = ..., item: _Optional[_Union[DescribedRow, _Mapping]] = ...) -> None: ...

class DescribedRow(_message.Message):
    __slots__ = ("id", "texts")
    class TextsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    texts: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., texts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class JudgePairsResponse(_message.Message):
    __slots__ = ("relevance",)
    RELEVANCE_FIELD_NUMBER: _ClassVar[int]
    relevance: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, relevance: _Optional[_Iterable[float]] = ...) -> None: ...
