# Install from this folder alone, without a network: powershell -ExecutionPolicy Bypass -File install.ps1
$ErrorActionPreference = "Stop"
Set-Location $PSScriptRoot
py -3 -m venv .venv
.venv\Scripts\python -m pip install --quiet --no-index --find-links wheels "r2l[all,explorer]"
if ($LASTEXITCODE) { exit $LASTEXITCODE }
Write-Output "ready: .venv\Scripts\jupyter lab notebooks"
