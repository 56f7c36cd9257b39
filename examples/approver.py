import sys

from turnkeeper_client.pb.v1.approval_pb2 import APPROVAL_STATE_PENDING
from turnkeeper_client.sync import Client

with Client(sys.argv[1] if sys.argv[1:] else "127.0.0.1:50051") as client:
    for approval in client.approvals.list(states=[APPROVAL_STATE_PENDING]):
        print(approval.requester, "asks for", approval.tool, approval.arguments_json)
        if input("May it run? y or n: ") == "y":
            client.approvals.approve(approval)
        else:
            client.approvals.reject(approval, reason=input("Why not? "))
