"""The store on MongoDB. Nothing outside this package knows the driver."""

import os

# Motor runs each call in a thread of a pool that it makes when it is imported: five for each core. When the database
# stalls, calls wait there for their time limits, and renewals of leases wait behind them.
os.environ.setdefault("MOTOR_MAX_WORKERS", "32")
