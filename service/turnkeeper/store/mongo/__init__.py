"""The store on MongoDB. No code outside this package imports the driver, except for the embedded database."""

import os

# Motor runs each call in a thread of a pool that it creates at its import, with five threads a core. When the database
# stalls, calls occupy these threads until their time limits, and renewals of leases would queue behind them.
os.environ.setdefault("MOTOR_MAX_WORKERS", "32")
