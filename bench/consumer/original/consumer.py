"""The original's consumer as its description has it: one message after another, each an upsert of its own."""

import json
import os
from datetime import datetime, timezone

from kafka import KafkaConsumer
from pymongo import MongoClient


def iso(milliseconds):
    moment = datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def document(event):
    fields = dict(event["payload"])
    fields["event_id"] = event["id"]
    fields["event_timestamp"] = event["timestamp"]
    fields["ingested_at"] = event["ingested_at"]
    fields["api_version"] = event["api_version"]
    fields["event_timestamp_iso"] = iso(event["timestamp"])
    fields["ingested_at_iso"] = iso(event["ingested_at"])
    return fields


def main():
    source = os.environ["EXPECTED_SOURCE"]
    collection = MongoClient(os.environ["MONGODB_URI"])[os.environ["MONGODB_DB"]][source]
    consumer = KafkaConsumer(
        os.environ["KAFKA_TOPIC"],
        bootstrap_servers=os.environ["KAFKA_BROKER"],
        group_id=os.environ["KAFKA_GROUP_ID"],
        auto_offset_reset="earliest",
        enable_auto_commit=True,
        value_deserializer=lambda value: json.loads(value.decode("utf-8")),
    )
    for message in consumer:
        event = message.value
        if event.get("source") != source:
            continue
        collection.update_one({"event_id": event["id"]}, {"$set": document(event)}, upsert=True)


if __name__ == "__main__":
    main()
