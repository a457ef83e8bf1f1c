//! The declaration of every variable of the producer: name, default and documentation.

use service::Kind;

service::settings! {
    /// The values of the variables, unparsed.
    pub struct Settings {
        /// Kafka bootstrap servers, `host:port`, separated by commas. A scheme, as in
        /// `SASL_SSL://host:port`, sets `security.protocol`.
        kafka_broker: Kind::Required,
        /// Topic of the events.
        kafka_topic: Kind::Default("events.raw"),
        /// `api_version` of every event.
        api_version: Kind::Default("1.0.0"),
        /// Maximum size of an event's body, in bytes.
        max_payload_bytes: Kind::Default("65536"),
        /// Maximum number of events in a batch request.
        max_batch_events: Kind::Default("10000"),
        /// Maximum size of a batch request's body after decompression, in bytes.
        max_batch_bytes: Kind::Default("16777216"),
        /// Whether `/ingest` and `/ingest/batch` reject events without an id.
        require_id: Kind::Default("false"),
        /// Sources that `/ingest` and `/ingest/batch` accept, separated by commas. `/ingest/adsbdb`
        /// is not affected.
        accept_sources: Kind::Optional("all"),
        /// Base URL of ADSBDB.
        adsbdb_base_url: Kind::Default("https://api.adsbdb.com"),
        /// Timeout of a call to ADSBDB including its retries, in milliseconds.
        adsbdb_timeout_ms: Kind::Default("10000"),
        /// Maximum number of concurrent requests to ADSBDB.
        adsbdb_max_concurrency: Kind::Default("4"),
        /// Maximum number of running poll jobs.
        max_poll_jobs: Kind::Default("10"),
        /// Timeout to receive the head of a request, and the same again for its body, in
        /// milliseconds.
        request_timeout_ms: Kind::Default("10000"),
        /// Timeout of an idle connection between two requests, in milliseconds.
        idle_timeout_ms: Kind::Default("75000"),
        /// Maximum number of open connections. Requests on further connections get a 503.
        max_connections: Kind::Default("12000"),
        /// Maximum number of concurrent requests that send events or start poll jobs. Further
        /// requests get a 503.
        max_in_flight: Kind::Default("2048"),
        /// API keys for `/ingest…`: `name:sha256` pairs, separated by commas or lines.
        api_keys: Kind::OptionalSecret("authentication is off"),
        /// Origins whose web pages may send events and read responses, as in
        /// `https://app.example.com`, separated by commas; `*` allows all.
        cors_allowed_origins: Kind::Optional("none"),
        /// Certificate chain of the HTTP server, a PEM file. It enables HTTPS and disables plain
        /// HTTP. A changed file is reloaded.
        tls_cert_file: Kind::Optional("TLS is off"),
        /// Private key of the certificate, a PEM file.
        tls_key_file: Kind::Optional("TLS is off"),
        /// Timeout for Kafka to acknowledge an event, in milliseconds. After it the response is a
        /// 504.
        delivery_timeout_ms: Kind::Default("10000"),
        /// Number of partitions of the topic, if the producer creates it.
        kafka_partitions: Kind::Default("6"),
        /// Replication factor of the topic, if the producer creates it.
        kafka_replication_factor: Kind::Optional("the broker's default"),
        /// Further librdkafka properties, `key=value` separated by semicolons, as for SASL_SSL. In
        /// a value, `\;` is a semicolon and `\\` a backslash. The file has one property per line.
        kafka_properties: Kind::OptionalSecret("none"),
        /// OpenTelemetry collector for traces, OTLP over HTTP, as in `http://collector:4318`.
        otel_exporter_otlp_endpoint: Kind::Optional("traces are off"),
        /// `service.name` of the traces.
        otel_service_name: Kind::Default("slipstream-producer"),
        /// Sampler of the traces: `always_on`, `always_off` or `traceidratio`. With the prefix
        /// `parentbased_` a request's `traceparent` decides, if there is one.
        otel_traces_sampler: Kind::Default("parentbased_always_on"),
        /// Share of the traces that `traceidratio` exports, from 0 to 1.
        otel_traces_sampler_arg: Kind::Default("1"),
        /// Address of the HTTP server.
        listen_addr: Kind::Default("0.0.0.0:8080"),
    }
}
