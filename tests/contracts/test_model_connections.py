"""One suite on the `Model` promises: the way to a model's server: addresses, headers, proxies, certificates."""

import pytest

from tests.contracts.gateway import CERTIFICATE, answering, gateway, refusing, tunnel
from tests.contracts.models import KEY, WEATHER, Stage, answer, asking, fail
from turnkeeper.model.failure import Reason
from turnkeeper.model.openai_client import Provider


class TestAddresses:
    @pytest.mark.parametrize(
        ("path", "target"),
        [
            ("/v1", "/v1/chat/completions"),
            ("/v1/", "/v1/chat/completions"),
            ("", "/chat/completions"),
            ("/v1/chat/completions", "/v1/chat/completions"),
            (
                "/openai/deployments/gpt%204/?api-version=2024-10-21",
                "/openai/deployments/gpt%204/chat/completions?api-version=2024-10-21",
            ),
            ("/v1?a=1&a=2&b=+x&c=%26", "/v1/chat/completions?a=1&a=2&b=+x&c=%26"),
            ("/d/chat/completions?api-version=1", "/d/chat/completions?api-version=1"),
        ],
    )
    async def test_a_query_goes_with_every_call(self, stage: Stage, path: str, target: str) -> None:
        async with gateway(lambda _: answering(), path=path) as server:
            await answer(stage.connect(server.base_url), asking("hello"))
        assert server.calls[0].target == target

    async def test_headers_and_fields_of_the_agents_own(self, stage: Stage) -> None:
        async with gateway(lambda _: answering()) as server:
            provider = Provider(
                base_url=server.base_url,
                api_key=KEY,
                headers=(("api-key", "azure-key-1"), ("X-Team", "night"), ("authorization", "Basic abc")),
                extra_body_json='{"top_p":0.1,"stream_options":{"include_usage":false},"nested":{"a":[1,null]}}',
            )
            await answer(stage.open(provider), asking("hello", tools=(WEATHER,)))
        (call,) = server.calls
        assert {name: call.headers[name] for name in ("api-key", "x-team", "authorization")} == {
            "api-key": "azure-key-1",
            "x-team": "night",
            "authorization": "Basic abc",
        }
        assert call.body["top_p"] == 0.1
        assert call.body["stream_options"] == {"include_usage": False}
        assert call.body["nested"] == {"a": [1, None]}

    async def test_a_header_that_is_empty_is_not_sent(self, stage: Stage) -> None:
        """Azure takes its key in a header of its own, and no other one beside it."""
        async with gateway(lambda _: answering()) as server:
            headers = (("api-key", "azure-key-1"), ("Authorization", ""), ("User-Agent", ""))
            await answer(stage.open(Provider(base_url=server.base_url, api_key=KEY, headers=headers)), asking("hello"))
        (call,) = server.calls
        assert call.headers["api-key"] == "azure-key-1"
        assert "authorization" not in call.headers


@pytest.fixture
def certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusts the gateways' certificate, by the variable that every client knows."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))


class TestTheWayThere:
    # The client's transport still passes a proxy's password on in the way that aiohttp will drop.
    @pytest.mark.filterwarnings("ignore:(BasicAuth|The 'proxy_auth' parameter) is deprecated:DeprecationWarning")
    @pytest.mark.usefixtures("certificates")
    async def test_https_proxy_is_a_tunnel(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        async with gateway(lambda _: answering(), tls=True) as server, tunnel(server.base_url) as (proxy, heads):
            monkeypatch.setenv("HTTPS_PROXY", proxy.replace("//", "//ada:p%40ss@"))
            model = stage.connect("https://model.test/v1")
            assert (await answer(model, asking("hello")))[1].text == "hello"
        assert heads[0].startswith("CONNECT model.test:443 HTTP/1.1")
        assert "Proxy-Authorization: Basic YWRhOnBAc3M=" in heads[0]
        assert server.calls[0].headers["host"] == "model.test"
        assert "proxy-authorization" not in server.calls[0].headers

    @pytest.mark.parametrize("no_proxy", ["model.invalid", ".invalid", "*", "other.example, model.invalid"])
    async def test_no_proxy_names_what_is_reached_without_one(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, no_proxy: str
    ) -> None:
        async with gateway(lambda _: answering()) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
            monkeypatch.setenv("NO_PROXY", no_proxy)
            _, failed = await fail(stage.connect("http://model.invalid/v1"))
            assert failed.detail.metadata["reason"] == Reason.NO_CONNECTION
            assert not proxy.calls
            monkeypatch.setenv("NO_PROXY", "elsewhere.invalid")
            await answer(stage.connect("http://model.invalid/v1"), asking("hello"))
        assert proxy.calls[0].target == "http://model.invalid/v1/chat/completions"

    @pytest.mark.parametrize("proxy", ["http://[::1", "gopher://127.0.0.1", "http://127.0.0.1:http"])
    def test_what_is_no_proxy_is_a_mistake_of_the_start(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, proxy: str
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(ValueError, match="HTTP_PROXY"):
            stage.connect("http://model.invalid/v1")

    @pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "http://127.0.0.1:99999"])
    async def test_a_proxy_that_does_not_work_fails_the_call(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, proxy: str
    ) -> None:
        monkeypatch.setenv("ALL_PROXY", proxy)
        _, failed = await fail(stage.connect("http://model.invalid/v1"))
        assert failed.detail.metadata["reason"] in (Reason.NO_CONNECTION, Reason.BAD_PROVIDER)

    async def test_a_proxy_that_refuses_fails_the_call(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        async with gateway(lambda _: refusing("who?", status="407 Proxy Authentication Required")) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.base_url.removesuffix("/v1"))
            _, failed = await fail(stage.connect("https://model.invalid/v1"))
        assert failed.detail.metadata["reason"] == Reason.NO_CONNECTION

    @pytest.mark.usefixtures("certificates")
    async def test_ssl_cert_file_counts_for_loopback(self, stage: Stage) -> None:
        async with gateway(lambda _: answering(), tls=True) as server:
            assert (await answer(stage.connect(server.base_url), asking("hello")))[1].text == "hello"

    async def test_an_unknown_certificate_fails_the_call(self, stage: Stage) -> None:
        async with gateway(lambda _: answering(), tls=True) as server:
            _, failed = await fail(stage.connect(server.base_url))
        assert failed.detail.metadata["reason"] == Reason.NO_CONNECTION
        assert not server.calls

    def test_certificates_that_cannot_be_read(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", __file__)
        with pytest.raises(ValueError, match="SSL_CERT_FILE"):
            stage.connect("https://model.invalid/v1")
