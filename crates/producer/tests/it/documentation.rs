//! `/openapi.json` and `/docs`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::application::Application;

/// A producer without a broker, which the documentation does not need.
async fn application() -> Application {
    Application::start("127.0.0.1:9", &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_path_has_exactly_the_documented_methods() {
    let app = application().await;
    let answer = app.get("/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, operations) in document["paths"].as_object().unwrap() {
        let mut documented: BTreeSet<String> =
            operations.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        if documented.contains("GET") {
            documented.insert("HEAD".into());
        }
        let path = path.replace("{job_id}", "none").replace("{file}", "start.js");
        let answer = app.request("TRACE", &path, &[], "").await;
        answer.problem(405, false);
        let allowed: BTreeSet<String> =
            answer.header("allow").unwrap().split(',').map(|method| method.trim().to_owned()).collect();
        assert_eq!(allowed, documented, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_loads_nothing_from_other_hosts() {
    let app = application().await;
    let page = app.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
    for source in policy.split([' ', ';']).filter(|word| !word.is_empty()) {
        let own = source.starts_with('\'') || source == "data:" || source.ends_with("-src");
        assert!(
            own || source.ends_with("-uri") || source == "form-action" || source == "frame-ancestors",
            "{source}"
        );
    }
    let start = app.get("/docs/start.js").await.text;
    assert!(start.contains("validatorUrl: null") && start.contains(r#""../openapi.json""#), "{start}");
    for text in [&page.text, &start] {
        assert!(!text.contains("//") || !text.contains("http"), "{text}");
    }
    let referred = page.text.split(['"']).filter(|text| text.starts_with("docs/"));
    let referred: Vec<String> = referred.map(|file| format!("/{file}")).collect();
    assert_eq!(referred.len(), 4, "{referred:?}");
    for file in referred {
        assert_eq!(app.get(&file).await.status, 200, "{file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_page_are_compressed_only_if_the_client_accepts_it() {
    let app = application().await;
    let path = "/docs/swagger-ui.css";
    let plain = app.get(path).await;
    assert_eq!((plain.header("content-type"), plain.header("content-encoding")), (Some("text/css"), None));
    assert!(plain.text.starts_with(".swagger-ui"), "{}", &plain.text[..40]);
    let compressed = app.request("GET", path, &[("Accept-Encoding", "gzip, br")], "").await;
    assert_eq!(compressed.header("content-encoding"), Some("gzip"));
    let bytes = |answer: &crate::application::Answer| -> usize {
        answer.header("content-length").and_then(|length| length.parse().ok()).unwrap()
    };
    assert!(bytes(&compressed) * 4 < bytes(&plain), "{} of {}", bytes(&compressed), bytes(&plain));
    app.get("/docs/no-such-file.js").await.problem(404, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_equals_its_example_in_the_openapi_document() {
    let app = application().await;
    let document = app.get("/openapi.json").await.json();
    let answers = &document["paths"]["/ingest"]["post"]["responses"];
    let example = |status: &str, name: &str| -> Value {
        answers[status]["content"]["application/problem+json"]["examples"][name]["value"].clone()
    };
    assert_eq!(app.ingest("").await.json(), example("400", "empty"));
    assert_eq!(app.ingest("{\n  \"source\": manual}").await.json(), example("400", "not_json"));
    let wrong = r#"{"source":"system.x","payload":[1],"extra":1}"#;
    assert_eq!(app.ingest(wrong).await.json(), example("422", "invalid"));
    let body = "x".repeat(70_000);
    assert_eq!(app.ingest(&body).await.json(), example("413", "body_too_large"));
    let text = app.request("POST", "/ingest", &[("Content-Type", "text/plain")], "x").await;
    assert_eq!(text.json(), example("415", "media_type"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_lists_the_supported_content_codings() {
    let app = application().await;
    let document = app.get("/openapi.json").await.json();
    for path in ["/ingest", "/ingest/batch"] {
        let described = &document["paths"][path]["post"];
        let parameters = described["parameters"].as_array().unwrap();
        let coding = parameters.iter().find(|parameter| parameter["name"] == "Content-Encoding").unwrap();
        for coding in coding["schema"]["enum"].as_array().unwrap() {
            let coding = [("Content-Encoding", coding.as_str().unwrap())];
            let answer = app.request("POST", path, &coding, "x").await;
            answer.problem(400, false);
        }
        let answer = app.request("POST", path, &[("Content-Encoding", "br")], "x").await;
        let documented = &described["responses"]["415"];
        let examples = &documented["content"]["application/problem+json"]["examples"];
        assert_eq!(answer.problem(415, false), examples["content_coding"]["value"], "{path}");
        assert_eq!(documented["headers"]["Accept-Encoding"]["required"], false);
        assert!(answer.header("accept-encoding").is_some());
    }
    let rejected = app.metric(r#"slipstream_events_rejected_total{reason="content_coding"}"#).await;
    assert_eq!(rejected, Some(2.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_a_batch_equals_its_example_in_the_document() {
    let settings = [
        ("REQUIRE_ID", "true"),
        ("MAX_PAYLOAD_BYTES", "100"),
        ("MAX_BATCH_BYTES", "300"),
        ("MAX_BATCH_EVENTS", "1"),
        ("REQUEST_TIMEOUT_MS", "300"),
    ];
    let app = Application::start("127.0.0.1:9", &settings).await;
    let document = app.get("/openapi.json").await.json();
    let answers = &document["paths"]["/ingest/batch"]["post"]["responses"];
    let example = |status: &str, name: &str| -> Value {
        let found = answers[status]["content"]["application/problem+json"]["examples"][name]["value"].clone();
        assert!(found.is_object(), "{status} {name}");
        found
    };
    let post = async |media_type: &str, body: &str| {
        app.request("POST", "/ingest/batch", &[("Content-Type", media_type)], body).await.json()
    };
    let (array, lines) = ("application/json", "application/x-ndjson");
    assert_eq!(post(array, "[]").await, example("400", "empty"));
    assert_eq!(post("text/plain", "x").await, example("415", "media_type"));
    let key = [("Idempotency-Key", "k")];
    assert_eq!(
        app.request("POST", "/ingest/batch", &key, "[]").await.json(),
        example("400", "idempotency_key")
    );
    assert_eq!(post(array, "").await, example("400", "all_batch_broken"));
    assert_eq!(post(array, "[{\n  \"source\": manual}]").await, example("400", "all_not_json"));
    assert_eq!(post(array, r#"[{"source":"manual","payload":{}}]"#).await, example("400", "all_id_missing"));
    let wrong = r#"{"source":"system.x","payload":[1],"extra":1}"#;
    assert_eq!(post(lines, wrong).await, example("422", "all_invalid"));
    let long = "x".repeat(101);
    assert_eq!(post(lines, &long).await, example("413", "all_event_too_large"));
    let many = post(lines, &format!("{long}\n{{}}")).await;
    assert_eq!(many["results"][1], example("413", "all_too_many_events")["results"][0]);
    assert_eq!(
        (&many["detail"], &many["rejected"]),
        (&example("413", "all_too_many_events")["detail"], &2.into())
    );
    assert_eq!(post(array, &" ".repeat(301)).await, example("413", "body_too_large"));
    let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n";
    let chunk = format!("{head}Transfer-Encoding: chunked\r\n\r\n12d\r\n{}\r\n0\r\n\r\n", " ".repeat(301));
    assert_eq!(app.raw(&[chunk.as_bytes()]).await.json(), example("413", "all_body_too_large"));
    let slow = format!("{head}Content-Length: 5\r\n\r\n[");
    assert_eq!(app.raw(&[slow.as_bytes()]).await.json(), example("408", "all_body_slow"));
}
