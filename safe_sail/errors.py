"""Every exception that Safe-SAIL raises on purpose. One class per condition a caller may treat differently.

SafeSailError
├── BadInput                      what the caller gave cannot be used
│   ├── BadSite                   a text is not the name of a site, or the site does not exist in this model
│   ├── BadSettings               a setting is outside its range
│   ├── BadRecord                 a record's fields contradict each other
│   ├── BadText                   no text, an empty text, or a text without content tokens
│   ├── SequenceTooLong           a text has more tokens than the model accepts
│   ├── ChatTemplateMissing       chat text was asked of a tokenizer that has no chat template
│   ├── EmptyConcept              a concept has no text, or texts of one class only
│   ├── CorpusUnreadable          a corpus file is missing, empty or malformed
│   ├── ImportUnreadable          a file to import is missing, damaged or of another format
│   ├── NotOffered                a job names a model, an SAE, a file or a language model that the server does not offer
│   ├── IdempotencyKeyReused      an idempotency key came again with another request
│   ├── ExportRefused             a file to export exists already, or the format cannot hold what is asked
│   └── EditRefused               an edit changed shape, dtype or its input in place, or has no meaning on this model
├── ModelLoadError                a model folder or hub name cannot be loaded
│   ├── FileMissing               a path or a needed file of a folder does not exist
│   ├── UnsafeWeights             weights in a format that can run code (pickle) were refused
│   ├── DamagedWeights            a safetensors file is truncated, or its tensors do not fit the configuration
│   ├── UnknownArchitecture       the model class has no row in the architecture table
│   ├── ArchitectureMismatch      a loaded model breaks an identity that its row promises
│   └── DeviceUnavailable         a device was asked for that this machine lacks
├── SaeLoadError                  an SAE cannot be loaded, or not for this model
│   ├── SaeWidthMismatch          the SAE's input is not as wide as its site
│   ├── SaeModelMismatch          the SAE was trained for another model
│   └── SaeMetadataUnsupported    the SAE's metadata asks for something that cannot be honoured
├── DirectionError                a direction cannot be found, read or removed
│   ├── NoDirection               no candidate passes the filters of the selection
│   ├── DirectionDegenerate       a direction is zero, not finite, or depends on the others
│   ├── RefusalTokensMissing      no first token of a reply tells refused prompts from answered ones
│   └── OrthogonaliseRefused      editing the weights would not be the same as ablating the direction
├── CircuitError                  a circuit cannot be found or put on a model
│   ├── CircuitMismatch           a circuit or mask is of another model, or names a unit that the model lacks
│   └── HeadsInseparable          the model's attention output does not split into heads
├── NeuronError                   neurons cannot be contrasted, patched or used by a guard
│   ├── ModelsDiffer              two models of a pair have other shapes, architectures or settings
│   ├── TokenizersDiffer          two models of a pair read other tokens
│   ├── ModelsEqual               two models of a pair have the same weights, so there is nothing to contrast
│   ├── NeuronsMissing            a model has no such neurons
│   ├── CompletionMissing         a prompt has no completion to contrast the models on
│   ├── NoEffect                  two models score the same, so that no share of their difference can be told
│   └── GuardUnfit                a guard cannot be trained, read or used
├── ServiceProblem                the service refused a client's request; holds the problem's fields
├── ServiceUnreachable            nothing answers at the service's address
├── JobFailed                     a live request could not be answered, for a reason that is not the request's
├── WorkerLost                    a cluster's workers do not start, or die at the same work again and again
├── OrganismBehaviourError        a rebuilt model organism misses a behaviour bar, so nothing was written
├── JudgeError                    a judge's reply could not be used
├── LlmError                      a language model behind an endpoint cannot be asked
│   ├── EndpointUnreachable       nothing answers at the endpoint, or not as an OpenAI-compatible server
│   ├── EndpointRefused           the endpoint answers, but refuses this key or this model
│   ├── BudgetExhausted           the next request could exceed the budget in tokens or in money
│   ├── PriceUnknown              a budget in money was set for a model whose price is unknown
│   └── BatchUnreadable           a batch file is missing, damaged or belongs to other requests
└── StoreError                    the database
    ├── NotFound                  no record has this key
    ├── JobConflict               a job is not in a state that allows what is asked
    ├── LeaseLost                 a worker's lease of a job ran out, and another may have it
    ├── DatabaseUnreachable       the database cannot be opened or does not answer
    └── SchemaOutOfDate           the database's revision is older or newer than this program
"""


class SafeSailError(Exception):
    """Root of all errors raised on purpose; the message says what was expected, what came and what to do."""


class BadInput(SafeSailError):
    """What the caller gave cannot be used."""


class BadSite(BadInput):
    """A text is not the name of a site, or the site does not exist in this model."""


class BadSettings(BadInput):
    """A setting is outside its range."""


class BadRecord(BadInput):
    """A record's fields contradict each other."""


class BadText(BadInput):
    """No text, an empty text, or a text without content tokens."""


class SequenceTooLong(BadInput):
    """A text has more tokens than the model accepts."""


class ChatTemplateMissing(BadInput):
    """Chat text was asked of a tokenizer that has no chat template."""


class EmptyConcept(BadInput):
    """A concept has no text, or texts of one class only."""


class CorpusUnreadable(BadInput):
    """A corpus file is missing, empty or malformed."""


class ImportUnreadable(BadInput):
    """A file to import is missing, damaged or of another format."""


class ExportRefused(BadInput):
    """A file to export exists already, or the format cannot hold what is asked."""


class NotOffered(BadInput):
    """A job names a model, an SAE, a file or a language model that the server does not offer."""


class IdempotencyKeyReused(BadInput):
    """An idempotency key came again with another request."""


class EditRefused(BadInput):
    """An edit changed shape, dtype or its input in place, or has no meaning on this model."""


class ModelLoadError(SafeSailError):
    """A model folder or hub name cannot be loaded."""


class FileMissing(ModelLoadError):
    """A path or a needed file of a folder does not exist."""


class UnsafeWeights(ModelLoadError):
    """Weights in a format that can run code (pickle) were refused."""


class DamagedWeights(ModelLoadError):
    """A safetensors file is truncated, or its tensors do not fit the configuration."""


class UnknownArchitecture(ModelLoadError):
    """The model class has no row in the architecture table."""


class ArchitectureMismatch(ModelLoadError):
    """A loaded model breaks an identity that its row promises."""


class DeviceUnavailable(ModelLoadError):
    """A device was asked for that this machine lacks."""


class SaeLoadError(SafeSailError):
    """An SAE cannot be loaded, or not for this model."""


class SaeWidthMismatch(SaeLoadError):
    """The SAE's input is not as wide as its site."""


class SaeModelMismatch(SaeLoadError):
    """The SAE was trained for another model."""


class SaeMetadataUnsupported(SaeLoadError):
    """The SAE's metadata asks for something that cannot be honoured."""


class DirectionError(SafeSailError):
    """A direction cannot be found, read or removed."""


class NoDirection(DirectionError):
    """No candidate passes the filters of the selection; the message says which filter took how many."""


class DirectionDegenerate(DirectionError):
    """A direction is zero, not finite, or depends on the others."""


class RefusalTokensMissing(DirectionError):
    """No first token of a reply tells refused prompts from answered ones."""


class OrthogonaliseRefused(DirectionError):
    """Editing the weights would not be the same as ablating the direction."""


class CircuitError(SafeSailError):
    """A circuit cannot be found or put on a model."""


class CircuitMismatch(CircuitError):
    """A circuit or mask is of another model, or names a unit that the model lacks."""


class HeadsInseparable(CircuitError):
    """The model's attention output does not split into heads."""


class NeuronError(SafeSailError):
    """Neurons cannot be contrasted, patched or used by a guard."""


class ModelsDiffer(NeuronError):
    """Two models of a pair have other shapes, architectures or settings."""


class TokenizersDiffer(NeuronError):
    """Two models of a pair read other tokens."""


class ModelsEqual(NeuronError):
    """Two models of a pair have the same weights, so there is nothing to contrast."""


class NeuronsMissing(NeuronError):
    """A model has no such neurons."""


class CompletionMissing(NeuronError):
    """A prompt has no completion to contrast the models on."""


class NoEffect(NeuronError):
    """Two models score the same, so that no share of their difference can be told."""


class GuardUnfit(NeuronError):
    """A guard cannot be trained, read or used."""


class JobFailed(SafeSailError):
    """A live request could not be answered, for a reason that is not the request's."""


class WorkerLost(SafeSailError):
    """A cluster's workers do not start, or die at the same work again and again."""


class OrganismBehaviourError(SafeSailError):
    """A rebuilt model organism misses a behaviour bar, so nothing was written."""


class JudgeError(SafeSailError):
    """A judge's reply could not be used."""


class LlmError(SafeSailError):
    """A language model behind an endpoint cannot be asked."""


class EndpointUnreachable(LlmError):
    """Nothing answers at the endpoint, or not as an OpenAI-compatible server."""


class EndpointRefused(LlmError):
    """The endpoint answers, but refuses this key or this model."""


class BudgetExhausted(LlmError):
    """The next request could exceed the budget in tokens or in money."""


class PriceUnknown(LlmError):
    """A budget in money was set for a model whose price is unknown."""


class BatchUnreadable(LlmError):
    """A batch file is missing, damaged or belongs to other requests."""


class StoreError(SafeSailError):
    """The database."""


class NotFound(StoreError):
    """No record has this key."""


class JobConflict(StoreError):
    """A job is not in a state that allows what is asked."""


class LeaseLost(StoreError):
    """A worker's lease of a job ran out, and another may have it."""


class DatabaseUnreachable(StoreError):
    """The database cannot be opened or does not answer."""


class SchemaOutOfDate(StoreError):
    """The database's revision is older or newer than this program."""


class ServiceProblem(SafeSailError):
    """The service refused a client's request, with the fields of its RFC 9457 problem."""

    def __init__(
        self, *, kind: str, status: int, title: str, detail: str, request_id: str, errors: tuple[str, ...]
    ) -> None:
        super().__init__(f"{detail or title} (HTTP {status}, {kind}, request {request_id})")
        self.kind = kind
        """Last part of the problem's `type`, as `not-found`; `http` for an answer that is no problem."""
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id
        """Also in the service's log."""
        self.errors = errors
        """Refused parts of the request, as `query.limit: Input should be less than 200`."""


class ServiceUnreachable(SafeSailError):
    """Nothing answers at the service's address, or the connection breaks off."""
