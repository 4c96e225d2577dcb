"""Behind API Gateway's non-proxy integration: the event is what the body says. And one that counts where it runs."""

import os
import time

loaded = time.time()


def handler(event, context):
    return f"Hello, {event['name']}!"


def where(event, context):
    time.sleep(0.01)
    return {"loaded": loaded, "process": os.getpid(), "number": int(event["number"])}
