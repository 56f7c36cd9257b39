"""The store on MongoDB. Nothing outside this package knows the driver."""
