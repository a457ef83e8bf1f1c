//! Each answer of the simulator as a client sees it.

use std::time::{Duration, Instant};

use devservers::{Fault, Simulator};
use reqwest::StatusCode;
use serde_json::{Value, json};

async fn start() -> Simulator {
    // Installed once a process; a second time is refused and changes nothing.
    _ = rustls::crypto::ring::default_provider().install_default();
    Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap()
}

async fn get(simulator: &Simulator, path: &str) -> reqwest::Result<(StatusCode, String)> {
    let answer = reqwest::get(format!("{}{path}", simulator.base_url())).await?;
    let status = answer.status();
    Ok((status, answer.text().await?))
}

async fn random(simulator: &Simulator) -> (StatusCode, Value) {
    let (status, body) = get(simulator, "/v0/aircraft/random").await.unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn a_random_aircraft_is_found_again_by_mode_s_and_by_registration() {
    let simulator = start().await;
    let (status, answer) = random(&simulator).await;
    assert_eq!(status, 200);
    let aircraft = &answer["response"]["aircraft"];
    assert_eq!(aircraft.as_object().unwrap().len(), 11);
    for name in ["mode_s", "registration"] {
        let path = format!("/v0/aircraft/{}", aircraft[name].as_str().unwrap().to_lowercase());
        let (status, body) = get(&simulator, &path).await.unwrap();
        assert_eq!((status.as_u16(), serde_json::from_str::<Value>(&body).unwrap()), (200, answer.clone()));
    }
    let (status, body) = get(&simulator, "/v0/aircraft/FFFFFF").await.unwrap();
    assert_eq!((status.as_u16(), body.as_str()), (404, "{\"response\":\"unknown aircraft\"}"));
    assert_eq!(simulator.requests(), 4);
}

#[tokio::test]
async fn it_says_that_it_lives_and_does_not_count_that() {
    let simulator = start().await;
    assert_eq!(get(&simulator, "/livez").await.unwrap().0, 200);
    assert_eq!(get(&simulator, "/v0/nonsense").await.unwrap().0, 404);
    assert_eq!(simulator.requests(), 0);
}

#[tokio::test]
async fn an_error_is_a_text_in_the_body() {
    let simulator = start().await;
    let faults = [
        (Fault::RateLimited { seconds: 5 }, 429, "rate limited for 5 seconds"),
        (Fault::ServerError, 500, "internal error"),
        (Fault::NotFound, 404, "unknown aircraft"),
        (Fault::ResponseIsText, 200, "aircraft"),
    ];
    for (fault, status, text) in faults {
        simulator.set_fault(Some(fault));
        assert_eq!(
            random(&simulator).await,
            (StatusCode::from_u16(status).unwrap(), json!({ "response": text }))
        );
    }
    simulator.set_fault(None);
    assert_eq!(random(&simulator).await.0, 200);
}

#[tokio::test]
async fn a_rate_limit_tells_its_seconds_nowhere_but_in_the_text() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::RateLimited { seconds: 5 }));
    let answer = reqwest::get(format!("{}/v0/aircraft/random", simulator.base_url())).await.unwrap();
    assert_eq!(answer.headers().get("retry-after"), None);
}

#[tokio::test]
async fn a_fault_for_two_requests_is_over_after_two() {
    let simulator = start().await;
    simulator.set_fault_for(2, Fault::ServerError);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(random(&simulator).await.0.as_u16());
    }
    assert_eq!(statuses, [500, 500, 200]);
}

#[tokio::test]
async fn nonsense_is_answered_with_status_200() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::Html));
    let (status, body) = get(&simulator, "/v0/aircraft/random").await.unwrap();
    assert!(status == 200 && body.starts_with("<!doctype html>"), "{body}");
    simulator.set_fault(Some(Fault::TruncatedJson));
    let (status, body) = get(&simulator, "/v0/aircraft/random").await.unwrap();
    assert!(status == 200 && body.starts_with("{\"response\":{\"aircraft\":{"), "{body}");
    assert!(serde_json::from_str::<Value>(&body).unwrap_err().is_eof());
}

#[tokio::test]
async fn a_reset_comes_before_a_byte_of_the_answer() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::Reset));
    let error = get(&simulator, "/v0/aircraft/random").await.unwrap_err();
    assert!(error.is_request() && error.status().is_none(), "{error:?}");
    assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");
    simulator.set_fault(None);
    assert_eq!(random(&simulator).await.0, 200);
}

#[tokio::test]
async fn a_field_can_be_new_and_three_can_be_null() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::ExtraField));
    let (_, answer) = random(&simulator).await;
    assert_eq!(answer["response"]["aircraft"]["first_flight"], "1998-05-17");
    simulator.set_fault(Some(Fault::Nulls));
    let (_, answer) = random(&simulator).await;
    let aircraft = answer["response"]["aircraft"].as_object().unwrap();
    assert_eq!((aircraft.len(), aircraft.values().filter(|value| value.is_null()).count()), (11, 3));
}

#[tokio::test]
async fn latency_delays_each_answer() {
    let simulator = start().await;
    let latency = Duration::from_millis(200);
    simulator.set_latency(latency);
    let before = Instant::now();
    assert_eq!(random(&simulator).await.0, 200);
    assert!(before.elapsed() >= latency);
    simulator.set_latency(Duration::ZERO);
    simulator.set_fault(Some(Fault::Slow(latency)));
    let before = Instant::now();
    assert_eq!(random(&simulator).await.0, 200);
    assert!(before.elapsed() >= latency);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_slow_answer() {
    let simulator = start().await;
    let url = format!("{}/v0/aircraft/random", simulator.base_url());
    simulator.set_fault(Some(Fault::Slow(Duration::from_secs(600))));
    let asking = tokio::spawn(reqwest::get(url.clone()));
    while simulator.requests() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_secs(10), simulator.stop()).await.unwrap();
    assert_eq!(asking.await.unwrap().unwrap().status(), 200);
    assert!(reqwest::get(url).await.unwrap_err().is_connect());
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = start().await;
    let error = Simulator::start(first.address()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("listening on {}: ", first.address())), "{error}");
}
