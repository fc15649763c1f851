"""Errors of the encoder library. All are ValueErrors, for callers who know no other names.

EncoderError
├── TemplateError   a template's text, or a row that does not fit it
├── ConfigError     an encoder's config, or an adapter_config.json
├── PackingError    a batch that cannot be packed, or a base that packing cannot serve exactly
├── PromptError     a prompt, batch or base that a PromptedModel cannot run
└── WeightsError    a weights file whose keys, shapes, dtypes or values are not what they must be
"""


class EncoderError(ValueError):
    """Something given to the encoder library is wrong."""


class ConfigError(EncoderError):
    """A config holds a value that no encoder can be built from."""


class TemplateError(EncoderError):
    """A template is malformed or a row does not fit it."""


class PackingError(EncoderError):
    """Rows cannot be packed, or the base cannot be run packed with exact results."""


class PromptError(EncoderError):
    """A prompt is unknown, or does not fit the base or the batch it is asked for."""


class WeightsError(EncoderError):
    """A weights file is not what it must be."""
