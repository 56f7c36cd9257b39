"""Asks about tool calls in a Slack channel, and decides by the button that is pressed there.

    SLACK_TOKEN=xoxb-… SLACK_SIGNING_SECRET=… SLACK_CHANNEL=C… python slack_approver.py

The app of Slack needs the scope `chat:write`, and this server's address as its Interactivity request URL. Who pressed
the button is in the reason, and everybody in the channel may press it: choose the channel accordingly.
"""

import asyncio
import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import ClientSession, web

from turnkeeper_client import Client
from turnkeeper_client.errors import FailedPrecondition, NotFound, TurnkeeperError
from turnkeeper_client.pb.v1.approval_pb2 import APPROVAL_STATE_PENDING, Approval

LOOK_EVERY = 2.0
LONGEST_AGE = 300
"""Seconds after which a signed request is refused: it may be a copy."""


def question(approval: Approval, channel: str) -> dict[str, Any]:
    """The message of Slack for an approval. Each button carries the hash of what is shown."""
    shown = f"`{approval.tool}` for {approval.requester}\n```{approval.arguments_json[:2500]}```"
    buttons = [
        {
            "type": "button",
            "text": {"type": "plain_text", "text": name},
            "style": style,
            "action_id": action,
            "value": json.dumps({"id": approval.approval_id, "hash": approval.arguments_hash}),
        }
        for name, style, action in (("Approve", "primary", "approve"), ("Reject", "danger", "reject"))
    ]
    section = {"type": "section", "text": {"type": "mrkdwn", "text": shown}}
    blocks = [section, {"type": "actions", "elements": buttons}]
    return {"channel": channel, "text": f"May {approval.tool} run?", "blocks": blocks}


def is_from_slack(body: bytes, headers: Mapping[str, str], secret: str, *, now: float) -> bool:
    """True if Slack signed the request, not long ago."""
    sent = headers.get("X-Slack-Request-Timestamp", "")
    if not sent.isdecimal() or abs(now - int(sent)) > LONGEST_AGE:
        return False
    digest = hmac.new(secret.encode(), b"v0:" + sent.encode() + b":" + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(f"v0={digest}", headers.get("X-Slack-Signature", ""))


async def ask(client: Client, slack: ClientSession, environ: Mapping[str, str]) -> None:
    """Posts each call that waits, once."""
    asked: set[str] = set()
    url = environ.get("SLACK_URL", "https://slack.com/api") + "/chat.postMessage"
    bearer = {"Authorization": f"Bearer {environ['SLACK_TOKEN']}"}
    while True:
        try:
            async for approval in client.approvals.list(states=[APPROVAL_STATE_PENDING]):
                if approval.approval_id not in asked:
                    message = question(approval, environ["SLACK_CHANNEL"])
                    async with slack.post(url, json=message, headers=bearer) as answer:
                        if (await answer.json()).get("ok"):
                            asked.add(approval.approval_id)
        except (TurnkeeperError, OSError) as error:
            print("asked again soon:", error)
        await asyncio.sleep(LOOK_EVERY)


async def decide(client: Client, action: Mapping[str, Any], user: str) -> str:
    """Decides as the button says, on exactly what it showed. Returns a text for the channel."""
    wanted = json.loads(action["value"])
    try:
        approval = await client.approvals.get(wanted["id"])
        if approval.arguments_hash != wanted["hash"]:
            return "The arguments have changed; look at the new question."
        verb = client.approvals.approve if action["action_id"] == "approve" else client.approvals.reject
        await verb(approval, reason=f"{user}, in Slack")
    except (FailedPrecondition, NotFound) as error:
        return f"Not decided here: {error.message}"
    return f"`{approval.tool}`: {action['action_id']} by {user}"


def application(client: Client, slack: ClientSession, environ: Mapping[str, str]) -> web.Application:
    async def pressed(request: web.Request) -> web.Response:
        body = await request.read()
        if not is_from_slack(body, request.headers, environ["SLACK_SIGNING_SECRET"], now=time.time()):
            return web.Response(status=401)
        payload = json.loads((await request.post())["payload"])
        text = await decide(client, payload["actions"][0], payload["user"]["username"])
        await slack.post(payload["response_url"], json={"replace_original": True, "text": text})
        return web.Response()

    app = web.Application()
    app.router.add_post("/slack/actions", pressed)
    return app


async def main(environ: Mapping[str, str]) -> None:
    async with Client(environ.get("TURNKEEPER_CLIENT_ADDRESS", "127.0.0.1:50051")) as client, ClientSession() as slack:
        runner = web.AppRunner(application(client, slack, environ))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", int(environ.get("PORT", "3000"))).start()
            print("asks in", environ["SLACK_CHANNEL"], flush=True)
            await ask(client, slack, environ)
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(os.environ))
