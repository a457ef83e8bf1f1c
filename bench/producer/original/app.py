"""The original's API as its description has it: each request is one send that its handler waits for."""

import json
import os
import time
import uuid
from typing import Any

from fastapi import FastAPI, HTTPException
from kafka import KafkaProducer
from pydantic import BaseModel

app = FastAPI()
topic = os.environ["KAFKA_TOPIC"]
producer = KafkaProducer(
    bootstrap_servers=os.environ["KAFKA_BROKER"],
    acks="all",
    key_serializer=str.encode,
    value_serializer=lambda value: json.dumps(value).encode(),
)


class Event(BaseModel):
    id: str | None = None
    timestamp: int | None = None
    source: str
    payload: dict[str, Any]


@app.get("/readyz")
async def readyz():
    return {"status": "ready"}


@app.post("/ingest", status_code=202)
async def ingest(event: Event):
    now = int(time.time() * 1000)
    record = {
        "id": event.id or str(uuid.uuid4()),
        "timestamp": event.timestamp or now,
        "source": event.source,
        "payload": event.payload,
        "ingested_at": now,
        "api_version": "1.0.0",
    }
    try:
        metadata = producer.send(topic, key=record["id"], value=record).get(timeout=10)
    except Exception as error:
        raise HTTPException(status_code=500, detail=str(error)) from error
    return {
        "id": record["id"],
        "topic": topic,
        "partition": metadata.partition,
        "offset": metadata.offset,
        "status": "enqueued",
    }
