"""What a server and its supervisor prepare: the secrets that no log line shows."""

from turnkeeper.bootstrap import secrets_of


def test_keys_and_headers_in_the_environment_are_secrets() -> None:
    environ = {
        "OPENAI_API_KEY": "the-key-of-the-model",
        "NIGHT_SHIFT_KEY": "the-key-of-an-agent",
        "GATEWAY_TOKEN": "the-token-of-a-gateway",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=the-key-of-the-team, malformed-header",
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "authorization=Basic%20dTpw",
        "MISTRAL_API_KEY": "none",
        "TURNKEEPER_MODEL": "no-secret-at-all",
        "KEYBOARD": "no-secret-either",
    }
    assert secrets_of(environ) == [
        "the-key-of-the-model",
        "the-key-of-an-agent",
        "the-token-of-a-gateway",
        "x-team=the-key-of-the-team",
        "the-key-of-the-team",
        "malformed-header",
        "authorization=Basic%20dTpw",
        "Basic%20dTpw",
    ]
