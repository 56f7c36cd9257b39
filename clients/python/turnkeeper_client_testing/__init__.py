"""A scripted server for tests of programs that use the client: `pip install 'turnkeeper-client[testing]'`.

`server.stage` starts a real gRPC server on a real socket that plays the answers and streams of a test. `events` has
short names for what streams carry.
"""
