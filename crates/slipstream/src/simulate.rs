//! `slipstream simulate`: runs the ADSBDB simulator as a separate process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use devservers::Simulator;

use crate::cli::SimulateOptions;
use crate::output;
use kafka::BoxError;

/// Runs the simulator until a signal, or checks the health of a running one.
///
/// # Errors
/// The address cannot be bound.
pub async fn simulate(options: SimulateOptions) -> Result<ExitCode, BoxError> {
    if options.healthcheck {
        return Ok(if is_alive(options.listen).await { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let stop = service::signals::stop_token()?;
    let simulator = Simulator::start(options.listen).await?;
    output::write_line(format_args!("ADSBDB simulator on {}/v0/aircraft/random", simulator.base_url()))?;
    stop.cancelled().await;
    simulator.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn is_alive(listen: SocketAddr) -> bool {
    let ip = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    let url = format!("http://{}/livez", SocketAddr::new(ip, listen.port()));
    crate::http::get(&url, Duration::from_secs(3)).await.is_ok()
}
