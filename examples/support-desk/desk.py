from turnkeeper.tools import ToolClass, ToolError, tool

ORDERS = {"A-17": "packed", "B-4": "delivered"}


@tool(tool_class=ToolClass.READ_ONLY)
def find_order(number: str) -> str:
    """Look an order up by its number."""
    if number not in ORDERS:
        raise ToolError(f"There is no order {number}.")
    return ORDERS[number]


@tool
def refund(number: str, cents: int) -> str:
    """Pay money back to the customer."""
    find_order(number)
    return f"{cents / 100:.2f} were paid back for order {number}."
