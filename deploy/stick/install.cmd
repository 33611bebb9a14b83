@echo off
rem Installs labref from this folder, without a network. In an administrator's prompt: install.cmd. See README.html beside it.
setlocal
set "HERE=%~dp0"
set "FOUND="
call :look
if not defined FOUND for %%F in ("%HERE%python-@PYTHON@*-amd64.exe") do (
    echo Python @PYTHON@ is not here: %%~nxF is run ...
    start /wait "" "%%~fF" /passive InstallAllUsers=1 Include_launcher=1 InstallLauncherAllUsers=1 Include_test=0
)
if not defined FOUND call :look
if not defined FOUND (
    echo There is no Python @PYTHON@ of 64 bits on this computer. Get "Windows installer (64-bit)" of Python @PYTHON@
    echo from python.org, put it beside this file, and run install.cmd again.
    set "CODE=1"
    goto end
)
%FOUND% -I "%HERE%installer\install.py" %*
set "CODE=%ERRORLEVEL%"
:end
if "%~1"=="" pause
exit /b %CODE%

:look
py -@PYTHON@ -c "import sys; sys.exit(sys.maxsize < 2**32)" >nul 2>nul && set "FOUND=py -@PYTHON@"
if not defined FOUND python -c "import sys; sys.exit(sys.version_info[:2] != (3, @MINOR@) or sys.maxsize < 2**32)" >nul 2>nul && set "FOUND=python"
exit /b 0
