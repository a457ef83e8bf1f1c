use super::*;

/// The document of a producer with these variables.
fn document_with(variables: &[(&str, &str)]) -> Value {
    crate::routes::document(&Config::without_kafka(variables))
}

/// Each operation as method, path and JSON.
fn operations_with(variables: &[(&str, &str)]) -> Vec<(String, String, Value)> {
    let document = document_with(variables);
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations.push((method.clone(), path.clone(), operation.clone()));
        }
    }
    operations
}

#[test]
fn every_reference_has_a_target_and_every_operation_has_an_id() {
    let document = document_with(&[("ACCEPT_SOURCES", "manual"), ("REQUIRE_ID", "true")]);
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let ids: Vec<&str> =
        text.split("\"operationId\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    for (.., operation) in operations_with(&[]) {
        let id = operation["operationId"].as_str().unwrap().to_owned();
        let links = ids.iter().filter(|known| **known == id).count();
        assert!(links >= 1, "{id}");
    }
}

#[test]
fn every_error_status_of_an_operation_has_an_example() {
    for (method, path, operation) in operations_with(&[]) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(response["headers"]["X-Request-Id"].is_object(), "{method} {path} {status}");
            let problem = &response["content"]["application/problem+json"];
            if status.starts_with(['4', '5']) {
                let examples = problem["examples"].as_object().expect("examples");
                for (name, example) in examples {
                    let value = &example["value"];
                    assert_eq!(value["status"].to_string(), *status, "{method} {path} {name}");
                    let retry_after = response["headers"]["Retry-After"]["required"] == true;
                    assert!(!retry_after || value["retryable"] == true, "{method} {path} {name}: {value}");
                }
            }
        }
        let statuses: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
        assert!(statuses.iter().any(|status| *status == "405"), "{method} {path}: {statuses:?}");
    }
}

#[test]
fn the_statuses_of_ingest_are_those_of_the_contract() {
    let document = document_with(&[("REQUIRE_ID", "true")]);
    let statuses = |path: &str, method: &str| -> Vec<String> {
        document["paths"][path][method]["responses"].as_object().unwrap().keys().cloned().collect()
    };
    let ingest = ["202", "400", "401", "405", "408", "413", "415", "422", "501", "503", "504"];
    assert_eq!(statuses("/ingest", "post"), ingest);
    assert_eq!(
        statuses("/ingest/adsbdb", "post"),
        ["202", "400", "401", "405", "413", "501", "502", "503", "504"]
    );
    assert_eq!(
        statuses("/ingest/adsbdb/poll", "post"),
        ["202", "400", "401", "405", "422", "429", "501", "503"]
    );
    assert_eq!(
        statuses("/ingest/adsbdb/poll/{job_id}", "delete"),
        ["200", "400", "401", "404", "405", "501"]
    );
    assert_eq!(statuses("/readyz", "get"), ["200", "400", "405", "501", "503"]);
    let reasons = &document["paths"]["/ingest"]["post"]["responses"]["503"]["content"];
    let reasons = reasons["application/problem+json"]["examples"].as_object().unwrap();
    assert_eq!(reasons.keys().collect::<Vec<_>>(), ["kafka_away", "overloaded", "queue_full", "stopping"]);
}

#[test]
fn the_document_contains_the_limits_of_the_configuration() {
    let document = document_with(&[("ACCEPT_SOURCES", "manual,adsbdb"), ("MAX_PAYLOAD_BYTES", "12345")]);
    let source = &document["components"]["schemas"]["Event"]["properties"]["source"];
    assert_eq!(source["enum"], json!(["adsbdb", "manual"]));
    assert!(document["paths"]["/ingest"]["post"]["description"].as_str().unwrap().contains("12345 bytes"));
}

#[test]
fn every_status_of_a_batch_has_an_example() {
    let document = document_with(&[("REQUIRE_ID", "true")]);
    let responses = document["paths"]["/ingest/batch"]["post"]["responses"].as_object().unwrap();
    let statuses: Vec<&String> = responses.keys().collect();
    assert_eq!(
        statuses,
        ["202", "207", "400", "401", "405", "408", "413", "415", "422", "501", "503", "504"]
    );
    let names = |status: &str| -> Vec<String> {
        let content = &responses[status]["content"]["application/problem+json"];
        for example in content["examples"].as_object().unwrap().values() {
            let value = &example["value"];
            let last = value["results"].as_array().map(|results| results.last().unwrap().clone());
            if let Some(last) = last {
                assert_eq!(last["status"].to_string(), status);
                assert_eq!(last["retryable"], value["retryable"]);
                assert_eq!(content["schema"], json!({"$ref": "#/components/schemas/BatchProblem"}));
            }
        }
        content["examples"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(
        names("400"),
        [
            "all_batch_broken",
            "all_body_broken",
            "all_body_cut",
            "all_id_missing",
            "all_not_json",
            "empty",
            "host",
            "idempotency_key"
        ]
    );
    assert_eq!(names("408"), ["all_body_slow"]);
    assert_eq!(
        names("413"),
        [
            "all_body_too_large",
            "all_event_too_large",
            "all_record_too_large",
            "all_too_many_events",
            "body_too_large"
        ]
    );
    assert_eq!(names("422"), ["all_invalid"]);
    assert_eq!(names("503"), ["all_kafka_away", "all_queue_full", "all_stopping", "overloaded", "stopping"]);
    assert_eq!(names("504"), ["all_unconfirmed"]);
}

#[test]
fn authentication_is_optional_only_without_api_keys() {
    let security = |settings: &[(&str, &str)]| {
        let of = |(.., operation): (String, String, Value)| operation["security"].clone();
        let mut all: Vec<Value> = operations_with(settings).into_iter().map(of).collect();
        all.retain(|security| !security.is_null());
        all
    };
    let key = format!("lab:{}", "a".repeat(64));
    assert_eq!(security(&[]), vec![json!([{}, {"bearer": []}, {"apiKey": []}]); 7]);
    assert_eq!(security(&[("API_KEYS", &key)]), vec![json!([{"bearer": []}, {"apiKey": []}]); 7]);
}
